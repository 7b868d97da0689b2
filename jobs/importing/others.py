"""Puts what other programs say of a picture, as sd-parsers has it, into a manifest's words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jobs.image_settings import MIN_SIDE
from sd_core.sampler_table import SAMPLER_TABLE, sampler_called, schedule_called
from sd_core.spec import LATENT_FACTOR, MAX_CLIP_SKIP, MAX_SIDE, MAX_STEPS, SEED_LIMIT

if TYPE_CHECKING:
    from sd_parsers.data import PromptInfo, Sampler

WEIGHTED = ("AUTOMATIC1111", "ComfyUI", "Fooocus")
"""Programs whose prompts have weights as `syntax: a1111` reads them."""

_SIZE = re.compile(r"(\d{1,5})\s*[x×]\s*(\d{1,5})")

# What changes the picture and has no equal here, or needs a file: name -> what to say.
_TOLD = {
    "Denoising strength": "it was made from a picture: name that under init_image, with strength",
    "Hires upscale": "it was enlarged while it was made (hires fix), which is left out",
    "ControlNet 0": "its ControlNet is left out",
    "Refiner": "its refiner is left out",
    "VAE": "its VAE may be named under vae",
}


def entry_of(found: PromptInfo, size: tuple[int, int]) -> tuple[dict[str, Any], list[str]]:
    """An entry for a picture, and what it does not say.

    size: of the picture, (width, height) in pixels.
    """
    sampler, *others = found.samplers
    program = found.generator.value
    notes = [f"of its {len(found.samplers)} samplers the first is taken"] if others else []
    entry: dict[str, Any] = {"prompt": found.full_prompt}
    if found.full_negative_prompt:
        entry["negative"] = found.full_negative_prompt
    if program in WEIGHTED:
        entry["syntax"] = "a1111"
    entry |= _numbers(sampler.parameters, notes)
    entry |= _sampler(sampler, notes)
    entry |= _size(found.metadata, size, notes)
    if program == "AUTOMATIC1111":
        entry |= _of_webui(found.metadata)
    if "<lora:" in entry["prompt"]:
        notes.append("its LoRA must be in the model list, or named under loras")
    notes += [text for name, text in _TOLD.items() if name in found.metadata]
    return entry, notes


def _numbers(given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Seed, steps and guidance, as far as they can be read."""
    found: dict[str, Any] = {}
    seed, steps = _whole(given.get("seed")), _whole(given.get("steps"))
    guidance = _number(given.get("cfg_scale"))
    if seed is not None and 0 <= seed < SEED_LIMIT:
        found["seed"] = seed
    else:
        notes.append("it does not say its seed")
    if steps is not None and 1 <= steps <= MAX_STEPS:
        found["steps"] = steps
    else:
        notes.append("its steps are not said, or cannot be made; the default is taken")
    if guidance is not None and guidance >= 1:
        found["guidance"] = guidance
    else:
        notes.append("its guidance is not said, or cannot be made; the default is taken")
    return found


def _sampler(sampler: Sampler, notes: list[str]) -> dict[str, str]:
    """The sampler, and the schedule where it is not the sampler's own."""
    known = sampler_called(str(sampler.name))
    if known is None:
        notes.append(f"its sampler, {sampler.name!s:.60}, is not here; the default is taken")
        return {}
    name, schedule = known
    given = sampler.parameters.get("scheduler")
    if given is not None and str(given).lower() not in ("automatic", "normal"):
        called = schedule_called(str(given))
        if called is None or called not in SAMPLER_TABLE[name].schedules:
            notes.append(f"its schedule, {given!s:.60}, does not go with {name}; it is left out")
        else:
            schedule = called
    return {"sampler": name} if schedule == "default" else {"sampler": name, "schedule": schedule}


def _size(metadata: Mapping[Any, Any], size: tuple[int, int], notes: list[str]) -> dict[str, int]:
    """The size that it was made at: as it says, else that of the picture, if it can be made."""
    said = _SIZE.fullmatch(str(metadata.get("Size", "")).strip())
    width, height = (int(said[1]), int(said[2])) if said else size
    sides = {"width": width, "height": height}
    for name, side in sides.items():
        if side % LATENT_FACTOR or not MIN_SIDE <= side <= MAX_SIDE:
            notes.append(f"its {name}, {side} pixels, cannot be made; sizes are left out")
            return {}
    return sides


def _of_webui(metadata: Mapping[Any, Any]) -> dict[str, Any]:
    """Settings that only the web UI writes. Its noise is a GPU's unless it says otherwise."""
    found: dict[str, Any] = {}
    if str(metadata.get("RNG", "GPU")).upper() != "CPU":
        found["noise"] = "gpu"
    skip = _whole(metadata.get("Clip skip"))
    if skip is not None and 1 < skip <= MAX_CLIP_SKIP:
        found["clip_skip"] = skip
    return found


def _whole(value: Any) -> int | None:
    """A whole number of at most 20 digits, as JSON or a text has it; None for anything else."""
    text = str(value).strip()
    return int(text) if re.fullmatch(r"-?\d{1,20}", text, re.ASCII) else None


def _number(value: Any) -> float | None:
    try:
        number = float(str(value)[:40])
    except ValueError:
        return None
    return number if math.isfinite(number) else None
