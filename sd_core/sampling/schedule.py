"""The noise schedule: betas, cumulative alphas, and the grids of timesteps that samplers walk.

All float64 numpy. A cumulative alpha `a` at timestep t means x_t = √a·x_0 + √(1 - a)·noise; its
noise level in the scaling of Karras et al. 2022 is σ = √((1 - a)/a).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TRAIN_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.0120


LEAST_ALPHA = 2.0**-24
"""Cumulative alpha of the last timestep of a schedule without signal there: as in diffusers not
quite 0, so that its noise level is a number."""


@cache
def alphas_cumprod(*, zero_snr: bool = False) -> Array:
    """(1000,) cumulative alphas of Stable Diffusion v1's "scaled linear" betas, read-only.

    zero_snr: shifted and scaled so that the last timestep has no signal (Lin et al. 2023, alg. 1).
    """
    betas = np.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_TIMESTEPS) ** 2
    alphas = np.cumprod(1.0 - betas, dtype=np.float64)
    if zero_snr:
        roots = np.sqrt(alphas)
        alphas = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
        alphas[-1] = LEAST_ALPHA
    alphas.flags.writeable = False
    return alphas


@dataclass(frozen=True)
class Grid:
    """Points from noisy to clean. Each array has one entry a point.

    timesteps: what the model is told, possibly fractional.
    alphas, alphas_next: cumulative alpha at the point, and where the step from it leads.
    known: cumulative alphas that the model was trained at.
    noise_alone: whether a picture without an init image starts from noise of the first point's
        level with nothing beside it, so that its variance is below 1, where a sampler minds.
    left_out: points before the first, where an init image enters later.
    """

    timesteps: Array
    alphas: Array
    alphas_next: Array
    known: Array
    noise_alone: bool = True
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.timesteps)

    def after(self, start: int) -> Grid:
        """The grid without its first `start` points: where an init image enters."""
        return replace(
            self,
            timesteps=self.timesteps[start:],
            alphas=self.alphas[start:],
            alphas_next=self.alphas_next[start:],
            left_out=start,
        )

    @property
    def steps(self) -> int:
        """Points of the whole grid."""
        return self.left_out + len(self)

    @property
    def sigmas(self) -> Array:
        return sigma_of(self.alphas)

    @property
    def sigmas_next(self) -> Array:
        return sigma_of(self.alphas_next)


def sigma_of(alphas: Array) -> Array:
    """Noise level σ of cumulative alphas; 0 for alpha 1."""
    return np.sqrt((1 - alphas) / alphas)


def timestep_of(sigmas: Array, known: Array) -> Array:
    """Fractional timesteps at which the schedule has these noise levels, by log interpolation.

    known: (1000,) cumulative alphas.
    """
    log_sigmas = np.log(sigma_of(known))
    return np.interp(np.log(sigmas), log_sigmas, np.arange(TRAIN_TIMESTEPS))
