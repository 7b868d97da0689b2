"""Frozen, validated configurations: what a model looks like, and how one image is sampled.

Nothing here imports torch, so a machine that only submits work can use it.
Sizes are those of Stable Diffusion v1 unless said otherwise.
"""

from __future__ import annotations

import contextlib
import math
import operator
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any, SupportsIndex, get_type_hints

from sd_core.sampler_table import (
    DISTILLED_STEPS,
    ETA_SAMPLERS,
    KARRAS_SAMPLERS,
    SAMPLER_TABLE,
    SAMPLERS,
    SCHEDULES,
    levels_of,
    sampler_called,
    schedule_called,
)
from sd_core.setting_texts import freeu_of, layers_called, projection_of, text_of

Shape = tuple[int, int]
"""Height and width of a latent, in latent pixels."""

LATENT_FACTOR = 8
"""Image pixels a latent pixel stands for, along each side (the f of an f=8 autoencoder)."""

MAX_SIDE = 4096
"""Longest image side in pixels that is accepted; the attention maps grow with its fourth power."""

NATIVE_SIZE = 512
"""Image side in pixels that Stable Diffusion v1 was trained at."""

DEMO_NATIVE_SIZE = 128
"""The same of the demo model."""

DEMO_GUIDANCE = 2.0
"""Guidance that suits the demo model. Its prompts decide the whole picture, so that the 7.5 of real
models drives colours out of their range."""

MOST_LORAS = 32
"""Adapters of one image."""

MOST_EMBEDDINGS = 64
"""Embeddings that the prompts of one image name."""

MOST_LORA_WEIGHT = 100.0
"""Largest weight of an adapter, either way of 0."""

MAX_STEPS = 1000
"""Number of the schedule's training timesteps; an image has at most as many steps."""


EXECUTIONS = ("auto", "eager", "packed", "fused", "graphed", "compiled")
"""Ways of running a model that `sd_core.execution.make_ready` accepts; the first is the default."""

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Number formats of a model that people may ask for; the first is the default."""

SYNTAXES = ("plain", "a1111")
"""Ways of reading a prompt: as it stands, or with weights and schedules (`sd_core.prompt`); the
first is the default.
"""

EMPHASES = ("a1111", "comfy", "none")
"""Ways in which weights of a prompt count (`sd_core.model.diffusion`); the first is the default."""

LONG_PROMPTS = ("chunk", "cut")
"""Ways with prompts of more than 75 tokens; the first is the default."""

STRENGTH_RULES = ("diffusers", "a1111")
"""Ways of counting the steps that a strength leaves (`sd_core.sampling.samplers.start_point`); the
first is the default."""

PREDICTIONS = ("epsilon", "v")
"""Predictions of UNets: noise, or the velocity of Salimans & Ho 2022; the first is v1's."""

NOISES = ("cpu", "gpu")
"""Generators of noise: PyTorch's on CPUs, or on CUDA devices; the first is the default."""

MOST_PAG_SCALE = 100.0
"""Largest scale of perturbed-attention guidance."""

PAG_LAYERS = "mid"
"""Attentions that it perturbs by default, as its authors do."""

MAX_CLIP_SKIP = 12
"""Layers of the text encoder of Stable Diffusion v1."""

SEED_LIMIT = 2**64
"""Seeds are 64-bit unsigned, as `torch.Generator.manual_seed` takes them."""


@dataclass(frozen=True)
class UNetSpec:
    """Sizes of the denoising UNet (Rombach et al. 2022; `UNetModel` of the CompVis code).

    guidance_dim: size of the embedding by which it is told its guidance, instead of being asked
    without the prompt too (Meng et al. 2023, sec. 3.1; LCM, Luo et al. 2023); 0 for none, as in v1.
    """

    in_channels: int = 4
    out_channels: int = 4
    channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    num_heads: int = 8
    context_dim: int = 768
    norm_groups: int = 32
    guidance_dim: int = 0

    def __post_init__(self) -> None:
        if self.guidance_dim % 2 or self.guidance_dim == 2:
            raise ValueError(f"guidance_dim {self.guidance_dim} is not 0, or even and above 2")
        if len(self.attention_levels) != len(self.channel_mult):
            raise ValueError(
                f"attention_levels {self.attention_levels} and channel_mult {self.channel_mult} "
                "must be of one length"
            )
        for mult in self.channel_mult:
            width = self.channels * mult
            if width % self.norm_groups:
                raise ValueError(f"{width} channels do not divide into {self.norm_groups} groups")
            if width % self.num_heads:
                raise ValueError(f"{width} channels do not divide into {self.num_heads} heads")


@dataclass(frozen=True)
class VAESpec:
    """Sizes of the KL autoencoder; `scale_factor` brings its latents to unit variance."""

    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    latent_channels: int = 4
    norm_groups: int = 32
    scale_factor: float = 0.18215

    def __post_init__(self) -> None:
        factor = 2 ** (len(self.channel_mult) - 1)
        if factor != LATENT_FACTOR:
            raise ValueError(
                f"channel_mult {self.channel_mult} gives f={factor}; only f={LATENT_FACTOR} is used"
            )


@dataclass(frozen=True)
class TextSpec:
    """Sizes of the CLIP text transformer (ViT-L/14's text tower at v1 size)."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    vocab_size: int = 49408
    length: int = 77
    activation: str = "quick_gelu"


@dataclass(frozen=True)
class ModelSpec:
    """A whole latent diffusion model. `ModelSpec()` is Stable Diffusion v1.

    prediction: what the UNet gives, one of `PREDICTIONS`.
    zero_snr: whether its last timestep has no signal (Lin et al. 2023).
    """

    unet: UNetSpec = field(default_factory=UNetSpec)
    vae: VAESpec = field(default_factory=VAESpec)
    text: TextSpec = field(default_factory=TextSpec)
    native_size: int = 512
    prediction: str = PREDICTIONS[0]
    zero_snr: bool = False

    def __post_init__(self) -> None:
        if self.unet.context_dim != self.text.width:
            raise ValueError(
                f"the UNet attends to states of width {self.unet.context_dim}, "
                f"the text encoder gives {self.text.width}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelSpec:
        """The inverse of `dataclasses.asdict`, also after a round trip through JSON."""

        def tuples(part: dict[str, Any]) -> dict[str, Any]:
            return {k: tuple(v) if isinstance(v, list) else v for k, v in part.items()}

        return cls(
            unet=UNetSpec(**tuples(values["unet"])),
            vae=VAESpec(**tuples(values["vae"])),
            text=TextSpec(**values["text"]),
            native_size=values["native_size"],
            prediction=values.get("prediction", PREDICTIONS[0]),
            zero_snr=values.get("zero_snr", False),
        )


_A_SEED = "within 0 to 2^64 - 1"
_WHOLE = {
    "steps": f"within 1 to {MAX_STEPS}",
    "width": f"that is a multiple of {LATENT_FACTOR} within 64 to {MAX_SIDE}",
    "height": f"that is a multiple of {LATENT_FACTOR} within 64 to {MAX_SIDE}",
    "seed": _A_SEED,
    "variation_seed": _A_SEED,
    "eta_noise_seed_delta": _A_SEED,
    "clip_skip": f"within 1 to {MAX_CLIP_SKIP}",
}
_CHOICES = {
    "syntax": SYNTAXES,
    "emphasis": EMPHASES,
    "long_prompts": LONG_PROMPTS,
    "strength_rule": STRENGTH_RULES,
    "noise": NOISES,
}
_SEEDS = ("seed", "variation_seed", "eta_noise_seed_delta")
_SHARES = (
    *("strength", "eta", "variation_strength", "guidance_from", "guidance_to", "guidance_rescale"),
    "thresholding",
)
_NUMBERS = {
    "guidance": "that is finite",
    "pag_scale": f"within 0 to {MOST_PAG_SCALE:g}",
    **dict.fromkeys(_SHARES, "within 0 to 1"),
}
_TEXTS = ("pag_layers", "freeu", "apg")


@dataclass(frozen=True)
class Sampling:
    """How one image is sampled. Raises `ValueError` naming the value and what is allowed.

    Numbers of other libraries, such as numpy's, become Python's own.

    sampler: one of `SAMPLERS`; or another program's name of one, also with a schedule's behind it.
    strength: share of the schedule an init image is taken through, 0 (unchanged) to 1; ignored
        without one.
    guidance: classifier-free guidance scale (Ho & Salimans 2022); 1.0 costs one UNet row, not two.
    eta: share of fresh noise in DDIM (Song et al. 2020, eq. 16), and gamma of TCD (Zheng et al.
        2024); 0 is deterministic.
    karras: space the noise levels as in Karras et al. 2022, eq. 5: the same as that schedule.
    clip_skip: layer of the text encoder that the prompt is read from; 1 is the last, 2 the one
        before it.
    syntax: one of `SYNTAXES`.
    emphasis: one of `EMPHASES`; with syntax a1111.
    long_prompts: one of `LONG_PROMPTS`.
    schedule: one of `SCHEDULES`, or another program's name of one; or noise levels, one a step, as
        `sd_core.sampler_table.levels_of` reads them. "karras" becomes "default" with `karras`.
    strength_rule: one of `STRENGTH_RULES`.
    noise: one of `NOISES`.
    variation_seed, variation_strength: of the noise that is mixed into that of the seed, and how
        far, 0 (not at all) to 1 (`sd_core.sampling.noise.mixed`).
    eta_noise_seed_delta: what the seed of fresh noise in the steps is above that of the noise to
        start from; 0 goes on with the same generator.
    guidance_from, guidance_to: shares of the steps between which there is guidance; without it a
        step costs one UNet row.
    guidance_rescale: how far the spread of a guided output is brought to that of the prompt's own,
        0 (not at all) to 1 (Lin et al. 2023, sec. 3.4).
    thresholding: quantile of the clean latent's magnitudes at which it is cut off in every step
        (Saharia et al. 2022, sec. 2.3); 0 is none.
    pag_scale: of perturbed-attention guidance (Ahn et al. 2024), 0 (none) to 100: away from what
        the UNet gives where self-attentions leave all tokens to themselves, which costs a row.
    pag_layers: those attentions, as `sd_core.setting_texts.layers_called` reads them.
    freeu: "b1 b2 s1 s2", see `sd_core.setting_texts.FreeU`; "" is none.
    apg: "eta norm_threshold momentum", see `sd_core.setting_texts.Projection`; "" is none.
    """

    sampler: str = SAMPLERS[0]
    steps: int = 50
    guidance: float = 7.5
    width: int = 512
    height: int = 512
    seed: int = 42
    strength: float = 0.75
    eta: float = 0.0
    karras: bool = False
    clip_skip: int = 1
    syntax: str = SYNTAXES[0]
    emphasis: str = EMPHASES[0]
    long_prompts: str = LONG_PROMPTS[0]
    schedule: str = SCHEDULES[0]
    strength_rule: str = STRENGTH_RULES[0]
    noise: str = NOISES[0]
    variation_seed: int = 0
    variation_strength: float = 0.0
    eta_noise_seed_delta: int = 0
    guidance_from: float = 0.0
    guidance_to: float = 1.0
    guidance_rescale: float = 0.0
    thresholding: float = 0.0
    pag_scale: float = 0.0
    pag_layers: str = PAG_LAYERS
    freeu: str = ""
    apg: str = ""

    def __post_init__(self) -> None:
        if tuple(map(type, vars(self).values())) != _PLAIN:  # they are, for all images of a plan
            self._check_types()
        if not isinstance(self.sampler, str) or self.sampler not in SAMPLERS:
            self._find_sampler()
        if not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"steps {self.steps} is not within 1 to {MAX_STEPS}")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance {self.guidance} is not a finite number")
        for name in ("width", "height"):
            side = getattr(self, name)
            if side % LATENT_FACTOR or not 64 <= side <= MAX_SIDE:
                raise ValueError(
                    f"{name} {side} is not a multiple of {LATENT_FACTOR} within 64 to {MAX_SIDE}"
                )
        for name in _SEEDS:
            if not 0 <= (seed := getattr(self, name)) < SEED_LIMIT:
                raise ValueError(f"{name} {seed} is not {_A_SEED}")
        for name in _SHARES:
            if not 0.0 <= (share := getattr(self, name)) <= 1.0:
                raise ValueError(f"{name} {share} is not within 0 to 1")
        if not self.guidance_from < self.guidance_to:
            raise ValueError(
                f"guidance_from {self.guidance_from} is not below guidance_to {self.guidance_to}"
            )
        if not 0.0 <= self.pag_scale <= MOST_PAG_SCALE:
            raise ValueError(f"pag_scale {self.pag_scale} is not {_NUMBERS['pag_scale']}")
        self._read_texts()
        self._leave_out()
        if self.eta and self.sampler not in ETA_SAMPLERS:
            raise ValueError(
                f"eta {self.eta} goes with sampler {' or '.join(ETA_SAMPLERS)} only, "
                f"not {self.sampler}"
            )
        self._check_schedule()
        if not 1 <= self.clip_skip <= MAX_CLIP_SKIP:
            raise ValueError(f"clip_skip {self.clip_skip} is not within 1 to {MAX_CLIP_SKIP}")
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name} {value!r:.80} is unknown; one of {', '.join(choices)}")
        if self.emphasis != EMPHASES[0] and self.syntax == "plain":
            raise ValueError(f"emphasis {self.emphasis} goes with syntax a1111 only, not plain")

    def _leave_out(self) -> None:
        """Sets what changes nothing to its default, so that one picture has one form."""
        if not self.variation_strength and self.variation_seed:
            object.__setattr__(self, "variation_seed", 0)
        row = SAMPLER_TABLE.get(self.sampler)
        if row is not None and not row.noise and not self.eta:
            object.__setattr__(self, "eta_noise_seed_delta", 0)
        if not self.pag_scale:
            object.__setattr__(self, "pag_layers", PAG_LAYERS)
        if self.guidance == 1.0:
            object.__setattr__(self, "apg", "")
            if not self.pag_scale:
                for name in ("guidance_from", "guidance_to", "guidance_rescale"):
                    object.__setattr__(self, name, getattr(Sampling, name))

    def _read_texts(self) -> None:
        """Takes settings that are texts of several numbers or names, in the one form of each."""
        if self.pag_layers != PAG_LAYERS:
            object.__setattr__(self, "pag_layers", layers_called(self.pag_layers))
        if self.freeu:
            object.__setattr__(self, "freeu", text_of(freeu_of(self.freeu)))
        if self.apg:
            object.__setattr__(self, "apg", text_of(projection_of(self.apg)))

    def _find_sampler(self) -> None:
        """Takes a sampler by a name that other programs have for it."""
        called = sampler_called(self.sampler) if isinstance(self.sampler, str) else None
        if called is None:
            raise ValueError(
                f"sampler {self.sampler!r:.80} is unknown; one of {', '.join(SAMPLERS)}"
            )
        sampler, schedule = called
        if schedule != SCHEDULES[0]:
            if self.spacing not in (SCHEDULES[0], schedule):
                raise ValueError(
                    f"sampler {self.sampler!r:.80} has schedule {schedule} in its name, "
                    f"which is not {self.spacing!r:.80}"
                )
            object.__setattr__(self, "schedule", schedule)
        object.__setattr__(self, "sampler", sampler)

    def _check_schedule(self) -> None:
        row = SAMPLER_TABLE[self.sampler]
        if self.karras and self.sampler not in KARRAS_SAMPLERS:
            raise ValueError(
                f"karras spacing does not go with {self.sampler}; with {', '.join(KARRAS_SAMPLERS)}"
            )
        if self.schedule != SCHEDULES[0]:
            self._find_schedule()
        if self.spacing == SCHEDULES[0] and row.grid == "lcm" and self.steps > DISTILLED_STEPS:
            raise ValueError(
                f"steps {self.steps} is too many for {self.sampler}; at most {DISTILLED_STEPS}"
            )

    def _find_schedule(self) -> None:
        """Takes a schedule by its name, or a list of noise levels, in the one form of it."""
        if not isinstance(self.schedule, str):
            raise ValueError(f"schedule {self.schedule!r:.80} is no text")
        schedule = schedule_called(self.schedule)
        known = SAMPLER_TABLE[self.sampler].schedules
        if schedule is None:
            levels = levels_of(self.schedule)
            if len(levels) != self.steps:
                raise ValueError(
                    f"schedule lists noise levels for steps {len(levels)}, not {self.steps}; "
                    "expected as many as steps"
                )
            if "karras" not in known:  # which is one of noise levels too
                raise ValueError(
                    f"schedule of noise levels does not go with {self.sampler}; "
                    f"with {', '.join(KARRAS_SAMPLERS)}"
                )
            schedule = " ".join(map(repr, levels))
        elif schedule not in known:
            raise ValueError(
                f"schedule {schedule} does not go with {self.sampler}; "
                f"with it go {', '.join(known)}"
            )
        if self.karras and schedule not in (SCHEDULES[0], "karras"):
            raise ValueError(f"schedule {schedule:.80} does not go with karras: true")
        if schedule == "karras":  # two names of one thing: one picture has one form
            object.__setattr__(self, "karras", True)
            schedule = SCHEDULES[0]
        object.__setattr__(self, "schedule", schedule)

    def _check_types(self) -> None:
        for name, allowed in _WHOLE.items():
            value = getattr(self, name)
            if type(value) is not int:
                object.__setattr__(self, name, whole_number(name, value, allowed))
        for name, allowed in _NUMBERS.items():
            value = getattr(self, name)
            if type(value) is not float:
                object.__setattr__(self, name, _number(name, value, allowed))
        for name in _TEXTS:
            if not isinstance(value := getattr(self, name), str):
                raise ValueError(f"{name} {value!r:.80} is no text")
        if type(self.karras) is not bool:
            raise ValueError(f"karras {self.karras!r:.80} is neither True nor False")

    @property
    def spacing(self) -> str:
        """`schedule`, also where `karras` says it."""
        return "karras" if self.karras else self.schedule

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(height, width) of the latent, in latent pixels."""
        return self.height // LATENT_FACTOR, self.width // LATENT_FACTOR


FIRST_SETTINGS = (
    *("sampler", "steps", "guidance", "width", "height", "seed", "strength", "eta", "karras"),
)
"""Fields of `Sampling` that the name of every picture is made of, also at their defaults."""

ADDED_SETTINGS = {
    field.name: field.default for field in fields(Sampling) if field.name not in FIRST_SETTINGS
} | {"long_prompts": "cut"}
"""Fields that came later -> the value that pictures had before. At that they are left out of names
and plans, so that a new field renames no picture.
"""

_PLAIN = tuple(get_type_hints(Sampling).values())


def whole_number(name: str, value: object, allowed: str) -> int:
    """The value as Python's own int. Raises `ValueError` for what is none, True and False too.

    name, allowed: what it is and which are allowed, for the error.
    """
    if isinstance(value, SupportsIndex) and not isinstance(value, bool):
        with contextlib.suppress(TypeError):  # of arrays, which have the method too
            return operator.index(value)
    raise ValueError(f"{name} {value!r:.80} is no whole number; expected one {allowed}")


def _number(name: str, value: object, allowed: str) -> int | float:
    """The value as Python's own int or float."""
    if isinstance(value, (int, float, Real)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            as_float = float(value)
            return value if isinstance(value, int) else as_float
    raise ValueError(f"{name} {value!r:.80} is no number; expected one {allowed}")
