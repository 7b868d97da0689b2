"""An image's parameters as the line of text that AUTOMATIC1111's web UI writes and reads.

Many tools parse this text, so its words and their order are that program's, not ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jobs.image_settings import IMAGE_SETTINGS
from sd_core.sampler_table import KARRAS_SAMPLERS, SAMPLER_TABLE, SCHEDULE_TABLE

MODEL_HASH_DIGITS = 10  # of the file's sha256, as the web UI shortens it


def a1111_text(record: Mapping[str, Any]) -> str:
    """The text of an image record (see `worker.output.record`): prompt, negative prompt, one line
    of rest.

    Half surrogate pairs in a prompt, which no text file can hold, become question marks.
    """
    lines = [" ".join([record["prompt"], *map(_tag, record.get("loras", ()))])]
    if record["negative"]:
        lines.append(f"Negative prompt: {record['negative']}")
    lines.append(", ".join(f"{name}: {_quote(value)}" for name, value in _parameters(record)))
    text = "\n".join(lines).strip()
    return text.encode(errors="replace").decode()


def _tag(lora: Mapping[str, Any]) -> str:
    """A LoRA as the web UI reads it in a prompt: the text encoder's weight is the first."""
    text_weight, weight = _number(lora["text_weight"]), _number(lora["weight"])
    weights = weight if weight == text_weight else f"{text_weight}:{weight}"
    return f"<lora:{lora['name']}:{weights}>"


def _schedule_type(record: Mapping[str, Any]) -> str | None:
    """The web UI's name of the schedule; None where it has none, or none that differs.

    Its own default is said too, as of DPM++ 2M that is Karras, but for Euler a and LCM.
    """
    sampler = record["sampler"]
    if record["karras"]:
        return SCHEDULE_TABLE["karras"].webui
    if "schedule" in record:
        known = SCHEDULE_TABLE.get(record["schedule"])
        return None if known is None else known.webui
    if sampler == "euler_a" or SAMPLER_TABLE[sampler].grid == "lcm":
        return None
    return "Uniform" if sampler in KARRAS_SAMPLERS else None


def _parameters(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    sampler = SAMPLER_TABLE[record["sampler"]]
    pairs = [("Steps", str(record["steps"])), ("Sampler", sampler.webui)]
    if (schedule := _schedule_type(record)) is not None:
        pairs.append(("Schedule type", schedule))
    pairs += [
        ("CFG scale", _number(record["guidance"])),
        ("Seed", str(record["seed"])),
        ("Size", f"{record['width']}x{record['height']}"),
        ("Model hash", record["model"]["digest"][:MODEL_HASH_DIGITS]),
        ("Model", record["model"]["name"]),
    ]
    if "vae" in record:
        vae = record["vae"]
        pairs += [("VAE hash", vae["sha256"][:MODEL_HASH_DIGITS]), ("VAE", vae["name"])]
    if "strength" in record:
        pairs.append(("Denoising strength", _number(record["strength"])))
    if record["eta"]:
        pairs.append(("Eta DDIM", _number(record["eta"])))
    pairs += [
        (setting.webui, _text(record[name]))
        for name, setting in IMAGE_SETTINGS.items()
        if setting.webui is not None and name in record
    ]
    if "template" in record:  # as the web UI's extension for dynamic prompts calls it
        pairs.append(("Template", record["template"]))
    if record["sampler"].startswith("unipc"):
        pairs.append(("UniPC variant", "bh1" if record["sampler"] == "unipc_bh1" else "bh2"))
    # Without this line the web UI would draw the noise as its own settings say.
    rng = "NV" if record.get("noise") == "gpu" else "CPU"
    pairs += [("RNG", rng), ("Version", "sdbatch")]
    return pairs


def _text(value: float | str) -> str:
    """A setting's value, which may be a number, a choice or a switch, as the web UI writes it."""
    if isinstance(value, str | bool):
        return str(value)
    return _number(value)


def _number(value: float) -> str:
    """7.0 as people type it: 7."""
    return repr(float(value)).removesuffix(".0")


def _quote(value: str) -> str:
    """Quote a value as the web UI does: in JSON, where a comma, colon or newline would end it."""
    return json.dumps(value, ensure_ascii=False) if any(c in value for c in ",:\n") else value
