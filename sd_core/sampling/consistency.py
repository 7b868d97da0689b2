"""Samplers of models that were distilled to see the clean latent in a few steps."""

from __future__ import annotations

import numpy as np

from sd_core.sampling.dpm import clean_latent
from sd_core.sampling.schedule import Grid
from sd_core.sampling.step_table import Rows, StepTable, last_alpha


def lcm(grid: Grid) -> StepTable:
    """Multistep latent consistency sampling (Luo et al. 2023, alg. 3): to the clean latent that the
    model sees, then back to the next noise level with fresh noise.

    The published share of x in it, which makes timestep 0 change nothing, is left out as in
    ComfyUI: it is below 1e-5 wherever models are distilled, and would leave noise on other
    schedules.
    """
    rows = Rows()
    for n in range(len(grid)):
        p, q = clean_latent(grid.alphas[n])
        scale, noise = np.sqrt(grid.alphas_next[n]), np.sqrt(1 - grid.alphas_next[n])
        rows.add(grid.timesteps[n], grid.alphas[n], 0.0, [scale], noise, p, q)
    return rows.table(last_alpha(grid))


def tcd(grid: Grid, eta: float = 0.0) -> StepTable:
    """Trajectory consistency sampling (Zheng et al. 2024, alg. 4): along the trajectory to a share
    of the next timestep, then back up to that with fresh noise.

    eta: the gamma of the paper, 0 for no fresh noise; 0.3 is what its authors advise.
    """
    targets = np.append(grid.timesteps[1:], 0.0)
    rows = Rows()
    for n, target in enumerate(targets[: len(grid)]):
        a, a_next = grid.alphas[n], grid.alphas_next[n]
        between = grid.known[int((1 - eta) * target)]
        A, back = np.sqrt(between / a), np.sqrt(a_next / between)
        b = np.sqrt(1 - between) - A * np.sqrt(1 - a)
        c = np.sqrt(max(1 - a_next / between, 0.0))
        rows.add(grid.timesteps[n], a, back * A, [back * b], c=c)
    return rows.table(last_alpha(grid))
