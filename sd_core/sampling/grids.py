"""Grids by the name of a schedule: which timesteps a sampler visits, from noisy to clean.

Every grid has exactly as many points as steps. Programs that people know a schedule from are named
where it is made; where several differ, the sampler's own is the default.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from sd_core.sampler_table import (
    ALIGNED_STEPS,
    DISTILLED_STEPS,
    SAMPLER_TABLE,
    SCHEDULES,
    levels_of,
)
from sd_core.sampling.schedule import (
    TRAIN_TIMESTEPS,
    Array,
    Grid,
    alphas_cumprod,
    sigma_of,
    timestep_of,
)

KARRAS_RHO = 7.0
BETA_SHAPE = 0.6
ALIGN_YOUR_STEPS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
"""Noise levels for Stable Diffusion 1.5 in ten steps (Sabour et al. 2024, as published)."""


def grid_of(sampler: str, steps: int, schedule: str, *, zero_snr: bool = False) -> Grid:
    """The grid of a sampler's table.

    schedule: one of `SCHEDULES`, or noise levels as `levels_of` reads them. zero_snr: see
        `sd_core.sampling.schedule.alphas_cumprod`.
    """
    row, known = SAMPLER_TABLE[sampler], alphas_cumprod(zero_snr=zero_snr)
    end = float(known[0]) if row.end is None else row.end
    if schedule in LEVELS or schedule not in SCHEDULES:
        listed = schedule not in LEVELS
        sigmas = np.array(levels_of(schedule)) if listed else LEVELS[schedule](steps, known)
        timesteps = timestep_of(sigmas, known)
        return _grid(timesteps.round() if row.grid == "dpm" else timesteps, sigmas, end, known)
    if schedule == "default":
        schedule = _DEFAULTS[row.grid]
    if schedule == "leading":
        if row.grid == "leading":
            return _strided(steps, end, known)
        points = min(steps + 1, TRAIN_TIMESTEPS) if row.grid == "dpm" else steps
        return _grid_at(_leading(points)[:steps], end, known, noise_alone=False)
    timesteps = (_LINSPACE[row.grid] if schedule == "linspace" else TIMESTEPS[schedule])(steps)
    return _grid_at(timesteps, end, known)


_DEFAULTS = {"leading": "leading", "linspace": "linspace", "dpm": "linspace", "lcm": "distilled"}


def _grid_at(timesteps: Array, end: float, known: Array, *, noise_alone: bool = True) -> Grid:
    """The grid of timesteps, at the noise levels that the schedule has there."""
    sigmas = np.interp(timesteps, np.arange(TRAIN_TIMESTEPS), sigma_of(known))
    return _grid(timesteps, sigmas, end, known, noise_alone=noise_alone)


def _grid(
    timesteps: Array, sigmas: Array, end: float, known: Array, *, noise_alone: bool = True
) -> Grid:
    """end: cumulative alpha that the last step leads to."""
    alphas = 1 / (1 + sigmas**2)
    return Grid(timesteps, alphas, np.append(alphas[1:], end), known, noise_alone)


def karras_sigmas(steps: int, known: Array) -> Array:
    """`steps` noise levels, the schedule's largest to smallest (Karras et al. 2022, eq. 5)."""
    smallest, *_, largest = sigma_of(known) ** (1 / KARRAS_RHO)
    return (largest + np.linspace(0, 1, steps) * (smallest - largest)) ** KARRAS_RHO


def exponential_sigmas(steps: int, known: Array) -> Array:
    """Noise levels in equal steps of log σ (k-diffusion, diffusers)."""
    smallest, *_, largest = np.log(sigma_of(known))
    return np.exp(np.linspace(largest, smallest, steps))


def ays_sigmas(steps: int, _known: Array) -> Array:
    """Align your steps; for other counts than ten, interpolated in log σ as its authors do."""
    at = np.linspace(0, 1, len(ALIGN_YOUR_STEPS))
    if steps == ALIGNED_STEPS:
        return np.array(ALIGN_YOUR_STEPS[:-1])
    return np.exp(np.interp(np.linspace(0, 1, steps + 1), at, np.log(ALIGN_YOUR_STEPS)))[:-1]


def _even(steps: int) -> Array:
    """Even timesteps from 999 to 0, fractional."""
    return np.linspace(TRAIN_TIMESTEPS - 1, 0, steps)


def _even_whole(steps: int) -> Array:
    """The same, each the nearest whole one."""
    return _even(steps).round()


def _even_before_end(steps: int) -> Array:
    """`steps` + 1 even timesteps without the last, whole (DPM-Solver++ in diffusers)."""
    if steps == TRAIN_TIMESTEPS:  # rounding would visit one point twice
        return np.arange(TRAIN_TIMESTEPS, dtype=np.float64)[::-1]
    return np.linspace(0, TRAIN_TIMESTEPS - 1, steps + 1).round()[:0:-1]


_LINSPACE: dict[str, Callable[[int], Array]] = {
    "leading": _even_whole,
    "linspace": _even,
    "dpm": _even_before_end,
    "lcm": _even,
}


def _leading(steps: int) -> Array:
    """Whole timesteps, `1000 // steps` apart and starting at 1 (CompVis).

    The whole chain of 1000 starts at 0, for there is no timestep 1000.
    """
    first = 1 if steps < TRAIN_TIMESTEPS else 0
    return (np.arange(steps) * (TRAIN_TIMESTEPS // steps) + first)[::-1].astype(np.float64)


def _strided(steps: int, end: float, alphas: Array) -> Grid:
    """The leading grid of samplers over cumulative alphas: a step leads `1000 // steps` on, and to
    `end` where that passes timestep 0.
    """
    timesteps = _leading(steps).astype(np.int64)
    targets = timesteps - TRAIN_TIMESTEPS // steps
    alphas_next = np.where(targets >= 0, alphas[np.maximum(targets, 0)], end)
    return Grid(timesteps.astype(np.float64), alphas[timesteps], alphas_next, alphas, False)


def _trailing(steps: int) -> Array:
    """Whole timesteps from 999 down, 1000 / `steps` apart (Lin et al. 2023, table 2)."""
    return np.round(np.arange(TRAIN_TIMESTEPS, 0, -TRAIN_TIMESTEPS / steps)[:steps]) - 1.0


def _sgm_uniform(steps: int) -> Array:
    """`steps` + 1 even timesteps without the last, fractional (Stability AI, ComfyUI)."""
    return np.linspace(TRAIN_TIMESTEPS - 1, 0, steps + 1)[:-1]


def _simple(steps: int) -> Array:
    """Every 1000 / `steps`-th timestep counted from 999 (ComfyUI)."""
    return TRAIN_TIMESTEPS - 1.0 - np.floor(np.arange(steps) * (TRAIN_TIMESTEPS / steps))


def _beta(steps: int) -> Array:
    """Timesteps at even quantiles of a Beta(0.6, 0.6) distribution, which visits both ends more
    often (Lee et al. 2024, ComfyUI).

    Whole, but where two would be the same: with some hundreds of steps.
    """
    angles, shares = _beta_shares()
    quantiles = np.sin(np.interp(1 - np.arange(steps) / steps, shares, angles)) ** 2
    timesteps = quantiles * (TRAIN_TIMESTEPS - 1)
    whole = timesteps.round()
    return whole if len(np.unique(whole)) == steps else timesteps


@cache
def _beta_shares() -> tuple[Array, Array]:
    """Angles θ from 0 to π/2, and the shares of the distribution below sin²θ.

    Over θ its density is (sin θ·cos θ) to the power of 2·0.6 - 1, which has no poles.
    """
    angles = np.linspace(0, np.pi / 2, 200_001)
    middles = (angles[1:] + angles[:-1]) / 2
    shares = np.cumsum(np.sin(2 * middles) ** (2 * BETA_SHAPE - 1))
    return angles, np.append(0.0, shares / shares[-1]).astype(np.float64)


def _distilled(steps: int) -> Array:
    """Spread over the 50 timesteps that models of few steps are distilled at (Luo et al. 2023)."""
    at = np.floor(np.linspace(0, DISTILLED_STEPS, steps, endpoint=False))
    return (DISTILLED_STEPS - at) * (TRAIN_TIMESTEPS // DISTILLED_STEPS) - 1


LEVELS: dict[str, Callable[[int, Array], Array]] = {
    "karras": karras_sigmas,
    "exponential": exponential_sigmas,
    "ays": ays_sigmas,
}
"""Schedules of noise levels."""

TIMESTEPS: dict[str, Callable[[int], Array]] = {
    "uniform": _even,
    "trailing": _trailing,
    "sgm_uniform": _sgm_uniform,
    "simple": _simple,
    "ddim_uniform": _leading,
    "beta": _beta,
    "distilled": _distilled,
}
"""Schedules of timesteps."""
