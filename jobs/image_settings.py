"""Settings of an image, each declared once.

Manifests, rows of .csv files, plans, records, the gallery and the text for AUTOMATIC1111's web UI
follow from this table and from the fields of `Sampling`, which hold the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field

from sd_core.spec import (
    DEMO_GUIDANCE,
    DEMO_NATIVE_SIZE,
    EMPHASES,
    KARRAS_SAMPLERS,
    LATENT_FACTOR,
    LONG_PROMPTS,
    MAX_CLIP_SKIP,
    MAX_SIDE,
    MAX_STEPS,
    NATIVE_SIZE,
    SAMPLERS,
    SYNTAXES,
    Sampling,
)

MIN_SIDE = 64
"""Shortest side of an image in pixels."""

Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=LATENT_FACTOR)]
ClipSkip = Annotated[int, Field(ge=1, le=MAX_CLIP_SKIP)]
SamplerName = Literal[SAMPLERS]  # type: ignore[valid-type]
Syntax = Literal[SYNTAXES]  # type: ignore[valid-type]
Emphasis = Literal[EMPHASES]  # type: ignore[valid-type]
LongPrompts = Literal[LONG_PROMPTS]  # type: ignore[valid-type]


@dataclass(frozen=True)
class ImageSetting:
    """A field of `Sampling` that a manifest sets.

    type: of its value, for pydantic.
    description: of the key, for people.
    expected: the values that are allowed, in the words of an error message.
    label: name of the field in the gallery.
    webui: name of the field in AUTOMATIC1111's text; None for one that has no such name, or that
        `worker.output.a1111` writes in a way of its own.
    """

    type: Any
    description: str
    expected: str
    label: str
    webui: str | None = None


_SIDE = (
    f"in pixels, a multiple of {LATENT_FACTOR} (multiples of 64 advised). Default the model's "
    f"native size: {DEMO_NATIVE_SIZE} for demo, else {NATIVE_SIZE}."
)
_A_SIDE = f"a multiple of {LATENT_FACTOR} within {MIN_SIDE} to {MAX_SIDE}"

IMAGE_SETTINGS: Mapping[str, ImageSetting] = {
    "sampler": ImageSetting(
        SamplerName,
        f"Sampler, one of {', '.join(SAMPLERS)}. Default {Sampling.sampler}.",
        f"one of {', '.join(SAMPLERS)}",
        "Sampler",
    ),
    "steps": ImageSetting(
        Steps,
        f"Denoising steps, 1 to {MAX_STEPS}. Default {Sampling.steps}.",
        f"a whole number within 1 to {MAX_STEPS}",
        "Steps",
    ),
    "guidance": ImageSetting(
        Number,
        "Classifier-free guidance scale: how closely to follow the prompt. 1 is no guidance and "
        f"takes half the time. Default {DEMO_GUIDANCE} for demo, else {Sampling.guidance}.",
        "a finite number",
        "Guidance",
    ),
    "width": ImageSetting(Side, f"Width {_SIDE}", _A_SIDE, "Width"),
    "height": ImageSetting(Side, f"Height {_SIDE}", _A_SIDE, "Height"),
    "strength": ImageSetting(
        Share,
        "Share of the schedule that the init image is taken through, 0 (left as it is) to 1. Needs "
        f"an init_image. Default {Sampling.strength}.",
        "a number within 0 to 1",
        "Strength",
    ),
    "eta": ImageSetting(
        Share,
        "Share of fresh noise in sampler ddim, 0 to 1. Default 0.",
        "a number within 0 to 1",
        "Eta",
    ),
    "karras": ImageSetting(
        bool,
        f"Karras spacing of the noise levels, with {', '.join(KARRAS_SAMPLERS)}. Default false.",
        "true or false",
        "Karras spacing",
    ),
    "clip_skip": ImageSetting(
        ClipSkip,
        "Layer of the text encoder that prompts are read from: 1 is the last, 2 the one before it, "
        "as AUTOMATIC1111 counts. Default 1.",
        f"a whole number within 1 to {MAX_CLIP_SKIP}",
        "Clip skip",
        webui="Clip skip",
    ),
    "syntax": ImageSetting(
        Syntax,
        "Reading of prompts: plain, as they stand; or a1111, with (weights:1.2), [changes:of:0.5], "
        f"BREAK and AND. Default {SYNTAXES[0]}.",
        f"one of {', '.join(SYNTAXES)}",
        "Syntax",
    ),
    "emphasis": ImageSetting(
        Emphasis,
        "Effect of weights, with syntax a1111: as in AUTOMATIC1111's web UI, as in ComfyUI, or "
        f"none. Default {EMPHASES[0]}.",
        f"one of {', '.join(EMPHASES)}",
        "Emphasis",
    ),
    "long_prompts": ImageSetting(
        LongPrompts,
        "Prompts of more than 75 tokens: chunk has the text encoder read them 75 at a time, cut "
        f"leaves the rest out. Default {LONG_PROMPTS[0]}.",
        f"one of {', '.join(LONG_PROMPTS)}",
        "Long prompts",
    ),
}
"""Name of a setting -> what is to be known of it, in the order of the fields of `Sampling`. A new
one goes to the end of both.
"""

SETTINGS = tuple(IMAGE_SETTINGS)
"""Fields of `Sampling` that a manifest sets; the seed is set apart."""

TYPES: Mapping[str, type] = get_type_hints(Sampling)
"""Name of a field of `Sampling` -> its plain type."""
