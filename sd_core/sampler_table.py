"""Samplers and schedules by name: what is to be known of each but its mathematics.

Everything that names them follows from these tables: validation, the manifest's schema, help,
documents, and the text for AUTOMATIC1111's web UI. Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

DISTILLED_STEPS = 50
"""Timesteps that models of few steps are distilled at, so the most steps of their samplers."""


@dataclass(frozen=True)
class Schedule:
    """A spacing of a sampler's steps, but for its mathematics (`sd_core.sampling.grids`).

    webui: its name in AUTOMATIC1111's menu; None where there is none.
    aliases: other names that people know it by.
    """

    webui: str | None
    aliases: tuple[str, ...] = ()


SCHEDULE_TABLE: Mapping[str, Schedule] = {
    "default": Schedule(None, ("automatic",)),
    "karras": Schedule("Karras", ("ka",)),
    "exponential": Schedule("Exponential"),
    "sgm_uniform": Schedule("SGM Uniform"),
    "uniform": Schedule("Uniform", ("normal",)),
    "trailing": Schedule(None),
    "linspace": Schedule(None),
    "leading": Schedule(None),
    "beta": Schedule("Beta"),
    "simple": Schedule("Simple"),
    "ddim_uniform": Schedule("DDIM"),
    "ays": Schedule("Align Your Steps"),
}

SCHEDULES = tuple(SCHEDULE_TABLE)
"""Names of spacings; the first is the sampler's own."""

ALIGNED_STEPS = 10
"""Steps that `ays` has a table for."""

MOST_LEVELS = 1000
"""Noise levels in a schedule that lists them: as many as an image has steps."""

WHOLE_TIMESTEPS = ("default", "trailing", "linspace", "leading")
"""Names for samplers over cumulative alphas, which step between timesteps that the model knows."""

MOST_LEVEL = 14.7
"""Noise level σ that a schedule begins at, at most: a little above the most that the model knows,
as published tables round up."""

LEAST_LEVEL = 0.001
LEAST_FALL = 1.001
"""Noise levels below, or closer together, lose what they differ in to rounding."""


@dataclass(frozen=True)
class Sampler:
    """A sampler, but for its mathematics: the function of its name in a module of
    `sd_core.sampling`, from a grid to a `StepTable`.

    module: where that is.
    webui: its name in AUTOMATIC1111's menu.
    diffusers: the class that computes the same; None where there is none.
    order: that the error falls with on uneven steps, once a multistep sampler has its history; of
        the mean for one with fresh noise. None for one of few steps.
    grid: of timesteps by default, see `sd_core.sampling.grids`.
    end: cumulative alpha that it ends at; None is that of timestep 0, which is not quite clean.
    schedules: names of spacings that go with it, of `SCHEDULES`.
    eta: whether it takes one, a share of fresh noise.
    noise: whether it draws fresh noise without one.
    evaluations: of the model, from the number of grid points, which is at least 1.
    aliases: other names that people know it by.
    """

    module: str
    webui: str
    diffusers: str | None
    order: int | None
    grid: Literal["leading", "linspace", "dpm", "lcm"] = "linspace"
    end: float | None = 1.0
    schedules: tuple[str, ...] = SCHEDULES
    eta: bool = False
    noise: bool = False
    evaluations: Callable[[int], int] = int
    aliases: tuple[str, ...] = ()


def _one_more(points: int) -> int:
    """Evaluations of a sampler whose first step has two."""
    return points + 1


def _twice(points: int) -> int:
    """Evaluations of a sampler with two a step, but for the last."""
    return 2 * points - 1


_DPM = "DPMSolverMultistepScheduler"

SAMPLER_TABLE: Mapping[str, Sampler] = {
    "plms": Sampler(
        *("classic", "PLMS", "PNDMScheduler", 2, "leading", None, WHOLE_TIMESTEPS),
        evaluations=_one_more,
        aliases=("pndm",),
    ),
    "ddim": Sampler(
        *("classic", "DDIM", "DDIMScheduler", 1, "leading", None, WHOLE_TIMESTEPS), eta=True
    ),
    "euler": Sampler("noise_levels", "Euler", "EulerDiscreteScheduler", 1),
    "euler_a": Sampler(
        *("noise_levels", "Euler a", "EulerAncestralDiscreteScheduler", 1),
        aliases=("euler_ancestral",),
        noise=True,
    ),
    "heun": Sampler("noise_levels", "Heun", "HeunDiscreteScheduler", 2, evaluations=_twice),
    "lms": Sampler("noise_levels", "LMS", "LMSDiscreteScheduler", 4),
    "dpmpp_2m": Sampler("dpm", "DPM++ 2M", _DPM, 2, "dpm"),
    "ddpm": Sampler(
        "classic", "DDPM", "DDPMScheduler", 1, "leading", schedules=WHOLE_TIMESTEPS, noise=True
    ),
    "dpm2": Sampler(
        *("noise_levels", "DPM2", "KDPM2DiscreteScheduler", 2),
        evaluations=_twice,
        aliases=("dpm_2",),
    ),
    "dpm2_a": Sampler(
        *("noise_levels", "DPM2 a", "KDPM2AncestralDiscreteScheduler", 1),
        evaluations=_twice,
        aliases=("dpm_2_ancestral", "dpm2_ancestral"),
        noise=True,
    ),
    "dpmpp_2m_sde": Sampler("dpm", "DPM++ 2M SDE", _DPM, 2, "dpm", noise=True),
    "dpmpp_3m": Sampler("dpm", "DPM++ 3M", _DPM, 2, "dpm"),
    "dpmpp_3m_sde": Sampler("dpm", "DPM++ 3M SDE", None, 2, "dpm", noise=True),
    "dpmpp_2s_a": Sampler(
        *("dpm_midpoint", "DPM++ 2S a", None, 1),
        evaluations=_twice,
        aliases=("dpmpp_2s_ancestral",),
        noise=True,
    ),
    "dpmpp_sde": Sampler(
        "dpm_midpoint", "DPM++ SDE", "DPMSolverSDEScheduler", 2, evaluations=_twice, noise=True
    ),
    "unipc": Sampler(
        *("predictor_corrector", "UniPC", "UniPCMultistepScheduler", 3, "dpm"),
        aliases=("uni_pc", "uni_pc_bh2"),
    ),
    "unipc_bh1": Sampler(
        *("predictor_corrector", "UniPC", "UniPCMultistepScheduler", 3, "dpm"),
        aliases=("uni_pc_bh1",),
    ),
    "deis": Sampler("noise_levels", "DEIS", "DEISMultistepScheduler", 2, "dpm", None),
    "sa_solver": Sampler(
        "predictor_corrector", "SA-Solver", "SASolverScheduler", 2, "dpm", None, noise=True
    ),
    "ipndm": Sampler("noise_levels", "IPNDM", None, 2, aliases=("IPNDMScheduler",)),
    "lcm": Sampler("consistency", "LCM", "LCMScheduler", None, "lcm", noise=True),
    "tcd": Sampler("consistency", "TCD", "TCDScheduler", None, "lcm", None, ("default",), eta=True),
}

SAMPLERS = tuple(SAMPLER_TABLE)
"""Names that `sd_core.sampling.samplers.step_table` accepts; the first is the default."""

KARRAS_SAMPLERS = tuple(name for name, row in SAMPLER_TABLE.items() if "karras" in row.schedules)
"""Samplers that may use Karras spacing."""

ETA_SAMPLERS = tuple(name for name, row in SAMPLER_TABLE.items() if row.eta)
"""Samplers that take a share of fresh noise."""


def levels_of(schedule: str) -> tuple[float, ...]:
    """Noise levels σ of a schedule that is a list of them, with spaces between; a 0 at the end is
    left out.

    Raises `ValueError` for what is none, and for levels that do not fall or are out of range.
    """
    try:
        levels = [float(level) for level in schedule.split()]
    except ValueError:
        levels = []
    if levels and levels[-1] == 0:
        levels.pop()
    if not 1 <= len(levels) <= MOST_LEVELS:
        raise ValueError(
            f"schedule {schedule!r:.80} is unknown; one of {', '.join(SCHEDULES)}, or a list of at "
            f"most {MOST_LEVELS} noise levels"
        )
    for level, following in zip(levels, [*levels[1:], 0.0], strict=True):
        if not LEAST_LEVEL <= level <= MOST_LEVEL or not following * LEAST_FALL < level:
            raise ValueError(
                f"schedule has noise level {level:g} before {following:g}; expected levels that "
                f"fall by a thousandth at least, within {LEAST_LEVEL:g} to {MOST_LEVEL:g}"
            )
    return tuple(levels)


def sampler_called(name: str) -> tuple[str, str] | None:
    """The sampler that the web UI, diffusers, k-diffusion or ComfyUI calls `name`, and the schedule
    that the name ends with: "DPM++ 2M Karras" is `dpmpp_2m` with `karras`.

    None for a sampler that is not here, or a schedule that does not go with it.
    """
    whole = _letters(name)
    if whole in _SAMPLERS:
        return _SAMPLERS[whole], SCHEDULES[0]
    for ending, schedule in _SCHEDULES.items():
        sampler = _SAMPLERS.get(whole.removesuffix(ending)) if whole.endswith(ending) else None
        if sampler is not None and schedule in SAMPLER_TABLE[sampler].schedules:
            return sampler, schedule
    return None


def schedule_called(name: str) -> str | None:
    """The schedule that other programs call `name`; None for one that is not here."""
    return _SCHEDULES.get(_letters(name))


def _letters(name: str) -> str:
    """A name without the marks in which programs differ: `k_dpmpp_2m` is `DPM++ 2M`."""
    letters = re.sub(r"[ _-]", "", name.lower().replace("++", "pp"))
    return letters[1:] if letters.startswith(("keuler", "kheun", "klms", "kdpm")) else letters


def _named() -> Iterator[tuple[str, str]]:
    for ours, row in SAMPLER_TABLE.items():
        names = (ours, row.webui, row.diffusers, *row.aliases)
        yield from ((_letters(name), ours) for name in names if name)


_SAMPLERS = dict(reversed([*_named()]))  # of several that one class is, the first

_SCHEDULES = {
    _letters(name): ours
    for ours, row in SCHEDULE_TABLE.items()
    for name in (ours, row.webui, *row.aliases)
    if name
}
