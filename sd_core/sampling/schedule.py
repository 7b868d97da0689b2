"""The noise schedule: betas, cumulative alphas, and the timestep grids that samplers walk.

All float64 numpy. A cumulative alpha `a` at timestep t means x_t = √a·x_0 + √(1 - a)·noise; its
noise level in the scaling of Karras et al. 2022 is σ = √((1 - a)/a).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TRAIN_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.0120
KARRAS_RHO = 7.0


@cache
def alphas_cumprod() -> Array:
    """(1000,) cumulative alphas of Stable Diffusion v1's "scaled linear" betas, read-only."""
    betas = np.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_TIMESTEPS) ** 2
    alphas = np.cumprod(1.0 - betas, dtype=np.float64)
    alphas.flags.writeable = False
    return alphas


@dataclass(frozen=True)
class Grid:
    """Points from noisy to clean. Each array has one entry a point.

    timesteps: what the model is told, possibly fractional.
    alphas, alphas_next: cumulative alpha at the point, and where the step from it leads.
    """

    timesteps: Array
    alphas: Array
    alphas_next: Array

    def __len__(self) -> int:
        return len(self.timesteps)

    def after(self, start: int) -> Grid:
        """The grid without its first `start` points: where an init image enters."""
        return Grid(self.timesteps[start:], self.alphas[start:], self.alphas_next[start:])

    @property
    def sigmas(self) -> Array:
        return sigma_of(self.alphas)

    @property
    def sigmas_next(self) -> Array:
        return sigma_of(self.alphas_next)


def sigma_of(alphas: Array) -> Array:
    """Noise level σ of cumulative alphas; 0 for alpha 1."""
    return np.sqrt((1 - alphas) / alphas)


def leading_grid(steps: int, final_alpha: float) -> Grid:
    """Exactly `steps` integer points, `1000 // steps` apart and starting at 1 (CompVis).

    final_alpha: cumulative alpha that the last step leads to where it passes timestep 0;
        CompVis takes `alphas_cumprod[0]`.
    The whole chain of 1000 starts at 0, for there is no timestep 1000.
    """
    stride = TRAIN_TIMESTEPS // steps
    first = 1 if steps < TRAIN_TIMESTEPS else 0
    timesteps = (np.arange(steps) * stride + first)[::-1]
    targets = timesteps - stride
    alphas = alphas_cumprod()
    alphas_next = np.where(targets >= 0, alphas[np.maximum(targets, 0)], final_alpha)
    return Grid(timesteps.astype(np.float64), alphas[timesteps], alphas_next)


def linspace_grid(steps: int, *, karras: bool) -> Grid:
    """`steps` points spread evenly over 999 … 0, fractional, ending without noise (k-diffusion).

    karras: spread the noise levels by eq. 5 of Karras et al. 2022 instead, rho 7.
    """
    timesteps = np.linspace(TRAIN_TIMESTEPS - 1, 0, steps)
    sigmas = np.interp(timesteps, np.arange(TRAIN_TIMESTEPS), sigma_of(alphas_cumprod()))
    if karras:
        sigmas = karras_sigmas(steps)
        timesteps = timestep_of(sigmas)
    return _grid_of_sigmas(timesteps, sigmas)


def dpm_grid(steps: int, *, karras: bool) -> Grid:
    """The grid of DPM-Solver++ in diffusers: `steps` + 1 even points without the last, integers."""
    if karras:
        sigmas = karras_sigmas(steps)
        return _grid_of_sigmas(timestep_of(sigmas).round(), sigmas)
    timesteps = np.linspace(0, TRAIN_TIMESTEPS - 1, steps + 1).round()[:0:-1]
    if steps == TRAIN_TIMESTEPS:  # rounding would visit one point twice
        timesteps = np.arange(TRAIN_TIMESTEPS, dtype=np.float64)[::-1]
    return _grid_of_sigmas(timesteps, sigma_of(alphas_cumprod())[timesteps.astype(int)])


def karras_sigmas(steps: int) -> Array:
    """`steps` noise levels, the schedule's largest to smallest (Karras et al. 2022, eq. 5)."""
    smallest, *_, largest = sigma_of(alphas_cumprod()) ** (1 / KARRAS_RHO)
    return (largest + np.linspace(0, 1, steps) * (smallest - largest)) ** KARRAS_RHO


def timestep_of(sigmas: Array) -> Array:
    """Fractional timesteps at which the schedule has these noise levels, by log interpolation."""
    log_sigmas = np.log(sigma_of(alphas_cumprod()))
    return np.interp(np.log(sigmas), log_sigmas, np.arange(TRAIN_TIMESTEPS))


def _grid_of_sigmas(timesteps: Array, sigmas: Array) -> Grid:
    alphas = 1 / (1 + sigmas**2)
    return Grid(timesteps, alphas, np.append(alphas[1:], 1.0))
