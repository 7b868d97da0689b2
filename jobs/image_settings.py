"""Settings of an image, each declared once.

Manifests, rows of .csv files, plans, records, the gallery and the text for AUTOMATIC1111's web UI
follow from this table and from the fields of `Sampling`, which hold the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from sd_core.sampler_table import (
    ETA_SAMPLERS,
    KARRAS_SAMPLERS,
    MOST_LEVEL,
    MOST_LEVELS,
    SAMPLERS,
    SCHEDULES,
    sampler_called,
    schedule_called,
)
from sd_core.setting_texts import (
    FREEU_RANGE,
    LAYERS_RANGE,
    PROJECTION_RANGE,
    FreeU,
    Projection,
    freeu_of,
    layers_called,
    projection_of,
    text_of,
)
from sd_core.spec import (
    DEMO_GUIDANCE,
    DEMO_NATIVE_SIZE,
    EMPHASES,
    LATENT_FACTOR,
    LONG_PROMPTS,
    MAX_CLIP_SKIP,
    MAX_SIDE,
    MAX_STEPS,
    MOST_PAG_SCALE,
    NATIVE_SIZE,
    NOISES,
    PAG_LAYERS,
    SEED_LIMIT,
    STRENGTH_RULES,
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


def _sampler_name(text: str) -> str:
    """Our name of a sampler, and behind it that of the schedule where `text` has one."""
    called = sampler_called(text)
    if called is None:
        raise ValueError("unknown")
    sampler, schedule = called
    return sampler if schedule == SCHEDULES[0] else f"{sampler} {schedule}"


def _schedule_text(value: object) -> object:
    """A name as ours, and noise levels as text."""
    levels = [value] if type(value) in (int, float) else value
    if isinstance(levels, list) and all(type(level) in (int, float) for level in levels):
        return " ".join(map(repr, levels))
    return schedule_called(value) or value if isinstance(value, str) else value


SamplerName = Annotated[
    str,
    AfterValidator(_sampler_name),
    WithJsonSchema({"anyOf": [{"enum": list(SAMPLERS)}, {"type": "string"}]}),
]
ScheduleName = Annotated[
    str,
    BeforeValidator(_schedule_text),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": list(SCHEDULES)},
                {
                    "type": "array",
                    "items": {"type": "number", "minimum": 0, "maximum": MOST_LEVEL},
                    "minItems": 1,
                    "maxItems": MOST_LEVELS,
                },
                {"type": "string"},
            ]
        }
    ),
]
Syntax = Literal[SYNTAXES]  # type: ignore[valid-type]
Emphasis = Literal[EMPHASES]  # type: ignore[valid-type]
LongPrompts = Literal[LONG_PROMPTS]  # type: ignore[valid-type]
StrengthRule = Literal[STRENGTH_RULES]  # type: ignore[valid-type]
NoiseSource = Literal[NOISES]  # type: ignore[valid-type]
Seed = Annotated[int, Field(ge=0, lt=SEED_LIMIT)]
PagScale = Annotated[float, Field(ge=0, le=MOST_PAG_SCALE)]


def _numbers_of(form: type[FreeU] | type[Projection]) -> BeforeValidator:
    """Makes a mapping of some of the numbers the text of all."""

    def text(value: object) -> object:
        if not isinstance(value, dict) or not value.keys() <= set(form._fields):
            return value
        if not all(type(number) in (int, float) for number in value.values()):
            return value
        return text_of(form(**value))

    return BeforeValidator(text)


def _mapping_of(form: type[FreeU] | type[Projection]) -> WithJsonSchema:
    numbers = {name: {"type": "number"} for name in form._fields}
    mapping = {"type": "object", "properties": numbers, "additionalProperties": False}
    return WithJsonSchema({"anyOf": [mapping, {"type": "string"}]})


def _layer_names(value: object) -> object:
    listed = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return " ".join(value) if listed else value  # type: ignore[arg-type]


FORMS: Mapping[str, tuple[str, ...]] = {"freeu": FreeU._fields, "apg": Projection._fields}
"""Settings that may be mappings of numbers -> the names of these."""

PagLayers = Annotated[
    str,
    AfterValidator(layers_called),
    BeforeValidator(_layer_names),
    WithJsonSchema({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]}),
]
FreeUText = Annotated[
    str,
    AfterValidator(lambda text: text_of(freeu_of(text))),
    _numbers_of(FreeU),
    _mapping_of(FreeU),
]
ProjectionText = Annotated[
    str,
    AfterValidator(lambda text: text_of(projection_of(text))),
    _numbers_of(Projection),
    _mapping_of(Projection),
]


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
        f"Sampler, one of {', '.join(SAMPLERS)}; or another program's name of one, also with a "
        f"schedule behind it, as DPM++ 2M Karras. Default {Sampling.sampler}.",
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
        f"Share of fresh noise, 0 to 1, with {' and '.join(ETA_SAMPLERS)} (there it is gamma, and "
        "0.3 is advised). Default 0.",
        "a number within 0 to 1",
        "Eta",
    ),
    "karras": ImageSetting(
        bool,
        "Karras spacing of the noise levels: the same as schedule karras. With "
        f"{', '.join(KARRAS_SAMPLERS)}. Default false.",
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
    "schedule": ImageSetting(
        ScheduleName,
        f"Spacing of the steps, one of {', '.join(SCHEDULES)}; or a list of falling noise levels, "
        "as many as steps. default is the sampler's own. Which go with which: docs/samplers.md. "
        f"Default {SCHEDULES[0]}.",
        f"one of {', '.join(SCHEDULES)}, or a list of falling noise levels",
        "Schedule",
    ),
    "strength_rule": ImageSetting(
        StrengthRule,
        "Steps that a strength leaves of an init image's: int(steps·strength) as in diffusers, or "
        f"one more as in AUTOMATIC1111's web UI. Default {STRENGTH_RULES[0]}.",
        f"one of {', '.join(STRENGTH_RULES)}",
        "Strength rule",
    ),
    "noise": ImageSetting(
        NoiseSource,
        "Generator of noise, by what it imitates: cpu gives the noise of diffusers with a CPU "
        "generator, gpu that of a CUDA device, which AUTOMATIC1111's web UI has by default. Either "
        f"is drawn on any device. Default {NOISES[0]}.",
        f"one of {', '.join(NOISES)}",
        "Noise",
    ),
    "variation_seed": ImageSetting(
        Seed,
        "Seed of noise that is mixed into that of the seed, with variation_strength. Default 0.",
        "a whole number within 0 to 2^64 - 1",
        "Variation seed",
        webui="Variation seed",
    ),
    "variation_strength": ImageSetting(
        Share,
        "How far noise goes from that of the seed to that of variation_seed, 0 (not at all) to 1. "
        "Default 0.",
        "a number within 0 to 1",
        "Variation strength",
        webui="Variation seed strength",
    ),
    "eta_noise_seed_delta": ImageSetting(
        Seed,
        "What the seed of fresh noise in the steps is above that of the noise to start from; 31337 "
        "for pictures of NovelAI. Default 0, which goes on with the same generator.",
        "a whole number within 0 to 2^64 - 1",
        "Eta noise seed delta",
        webui="ENSD",
    ),
    "guidance_from": ImageSetting(
        Share,
        "Share of the steps after which guidance begins, 0 to 1. A step without takes half the "
        "time. Default 0.",
        "a number within 0 to 1",
        "Guidance from",
    ),
    "guidance_to": ImageSetting(
        Share,
        "Share of the steps after which guidance ends, 0 to 1. Default 1.",
        "a number within 0 to 1",
        "Guidance to",
    ),
    "guidance_rescale": ImageSetting(
        Share,
        "How far the spread of guided outputs is brought to that without guidance, 0 to 1, against "
        "washed out or burnt colours (Lin et al. 2023); 0.7 is advised for models that predict the "
        "velocity. Default 0.",
        "a number within 0 to 1",
        "Guidance rescale",
    ),
    "thresholding": ImageSetting(
        Share,
        "Dynamic thresholding as in diffusers: quantile of the clean latent's magnitudes, such as "
        "0.995, at which every step cuts it off. Made for models of pixels; latents lose contrast. "
        "Default 0, which is none.",
        "a number within 0 to 1",
        "Thresholding",
    ),
    "pag_scale": ImageSetting(
        PagScale,
        "Scale of perturbed-attention guidance, away from a picture without structure (Ahn et al. "
        "2024). It takes a row more, with AND one for each part. 3 is usual, beside a guidance of "
        "4 to 7 or with guidance 1. Default 0, which is none.",
        f"a number within 0 to {MOST_PAG_SCALE:g}",
        "PAG scale",
    ),
    "pag_layers": ImageSetting(
        PagLayers,
        f"Self-attentions that it perturbs, between spaces or as a list: {LAYERS_RANGE}, by the "
        f"numbers of diffusers' blocks. Default {PAG_LAYERS}.",
        f"names {LAYERS_RANGE}",
        "PAG layers",
    ),
    "freeu": ImageSetting(
        FreeUText,
        "FreeU: factors b1, b2 of the two deepest levels of the decoder, and s1, s2 of the lowest "
        "frequencies of what the encoder hands over (Si et al. 2023). As a mapping, whose missing "
        "factors are 1, or as a text of four numbers; {b1: 1.5, b2: 1.6, s1: 0.9, s2: 0.2} is "
        "advised for Stable Diffusion 1.5. Default none.",
        f"a mapping of b1, b2, s1, s2, or {FREEU_RANGE}",
        "FreeU",
    ),
    "apg": ImageSetting(
        ProjectionText,
        "Adaptive projected guidance, for high guidance without burnt colours (Sadat et al. 2024): "
        "eta is the share that is left of what only strengthens contrast, norm_threshold the "
        "largest norm of a step's guidance, momentum the share of earlier steps' in it. As a "
        "mapping, whose missing numbers are 1, 0 and 0, or as a text of three numbers. {eta: 0, "
        "norm_threshold: 7.5, momentum: -0.5} is a start. Default none.",
        f"a mapping of eta, norm_threshold, momentum, or {PROJECTION_RANGE}",
        "APG",
    ),
}
"""Name of a setting -> what is to be known of it, in the order of the fields of `Sampling`. A new
one goes to the end of both.
"""

SETTINGS = tuple(IMAGE_SETTINGS)
"""Fields of `Sampling` that a manifest sets; the seed is set apart."""

TYPES: Mapping[str, type] = get_type_hints(Sampling)
"""Name of a field of `Sampling` -> its plain type."""
