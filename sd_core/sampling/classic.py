"""Samplers of the first papers, over cumulative alphas."""

from __future__ import annotations

import numpy as np

from sd_core.sampling.schedule import Grid
from sd_core.sampling.step_table import ADAMS_BASHFORTH, Rows, StepTable, last_alpha


def plms(grid: Grid) -> StepTable:
    """Pseudo linear multistep (Liu et al. 2022), as the CompVis code runs it: S + 1 evaluations.

    The first step is an improved Euler step: its second evaluation, at the next timestep, is
    averaged with the first and then forgotten. The zeros below skip it in the history.
    """
    A = np.sqrt(grid.alphas_next / grid.alphas)
    b = np.sqrt(1 - grid.alphas_next) - A * np.sqrt(1 - grid.alphas)
    rows = Rows()
    if len(grid):
        rows.add(grid.timesteps[0], grid.alphas[0], A[0], [b[0]])
        second = grid.timesteps[min(1, len(grid) - 1)]
        rows.add(second, grid.alphas_next[0], 1.0, [b[0] / 2, -b[0] / 2], again=True)
    for n in range(1, len(grid)):
        weights = ADAMS_BASHFORTH[min(n, len(ADAMS_BASHFORTH) - 1)]
        if n < len(ADAMS_BASHFORTH):
            weights = np.insert(weights, n, 0)
        rows.add(grid.timesteps[n], grid.alphas[n], A[n], b[n] * weights)
    return rows.table(last_alpha(grid))


def ddim(grid: Grid, eta: float = 0.0) -> StepTable:
    """DDIM (Song et al. 2020, eq. 12 and 16): one evaluation a step, no memory.

    eta: share of the noise of the ancestral sampler that is put back, 0 for none.
    """
    a, a_next = grid.alphas, grid.alphas_next
    A = np.sqrt(a_next / a)
    sigma = eta * np.sqrt((1 - a_next) / (1 - a)) * np.sqrt(1 - a / a_next)
    b = np.sqrt(1 - a_next - sigma**2) - A * np.sqrt(1 - a)
    rows = Rows()
    for n in range(len(grid)):
        rows.add(grid.timesteps[n], a[n], A[n], [b[n]], c=sigma[n])
    return rows.table(last_alpha(grid))


def ddpm(grid: Grid) -> StepTable:
    """Ancestral sampling (Ho et al. 2020, eq. 6 and 7), strided, with the smaller variance."""
    a, a_next = grid.alphas, grid.alphas_next
    alpha = a / a_next  # of the whole stride
    of_clean = np.sqrt(a_next) * (1 - alpha) / (1 - a)
    of_x = np.sqrt(alpha) * (1 - a_next) / (1 - a)
    A = of_x + of_clean / np.sqrt(a)
    b = -of_clean * np.sqrt(1 - a) / np.sqrt(a)
    C = np.sqrt((1 - a_next) / (1 - a) * (1 - alpha))
    rows = Rows()
    for n in range(len(grid)):
        rows.add(grid.timesteps[n], a[n], A[n], [b[n]], c=C[n])
    return rows.table(last_alpha(grid))
