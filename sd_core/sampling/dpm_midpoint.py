"""DPM-Solver++ of single steps (Lu et al. 2022, alg. 1): two evaluations a step, the second in its
middle, which lies halfway in log σ. With fresh noise; the last step, to no noise, is Euler's.
"""

from __future__ import annotations

import numpy as np

from sd_core.sampling.dpm import clean_latent
from sd_core.sampling.schedule import Grid, timestep_of
from sd_core.sampling.step_table import (
    Rows,
    StepTable,
    ancestral,
    ancestral_step,
    last_alpha,
    noise_alone,
)

# Both move x of variance 1 + σ² from σ to σ' by σ'/σ·x + (1 - σ'/σ)·u, with u a clean latent. The
# second row of a step has x of the middle, and takes back what led there.


def dpmpp_2s_a(grid: Grid) -> StepTable:
    """DPM-Solver++ 2S with ancestral noise (k-diffusion's `sample_dpmpp_2s_ancestral`, eta 1)."""
    down, up = ancestral(grid)
    root, scale = np.sqrt(grid.alphas), np.sqrt(grid.alphas_next)
    rows = Rows()
    for n, sigma in enumerate(grid.sigmas):
        p, q = clean_latent(grid.alphas[n])
        if down[n] == 0:
            rows.add(grid.timesteps[n], grid.alphas[n], 0.0, [1.0], p=p, q=q)
            continue
        middle = np.sqrt(sigma * down[n])
        unit = 1 / np.sqrt(1 + middle**2)  # times x of the middle has variance 1
        half, whole = middle / sigma, down[n] / sigma
        a, b = unit * half / root[n], [unit * (1 - half)]
        rows.add(grid.timesteps[n], grid.alphas[n], a, b, p=p, q=q)
        back = whole / half
        a, b = scale[n] * back / unit, [scale[n] * (1 - whole), -scale[n] * back * (1 - half)]
        t, (p, q) = float(timestep_of(middle, grid.known)), clean_latent(unit**2)
        rows.add(t, unit**2, a, b, scale[n] * up[n], p, q, again=True)
    return rows.table(last_alpha(grid), noise_alone(grid))


def dpmpp_sde(grid: Grid) -> StepTable:
    """DPM-Solver++ SDE (k-diffusion's `sample_dpmpp_sde`, eta 1, r 1/2): fresh noise in both rows.

    The noise of a step and that of its first half are of one Brownian motion over σ.
    """
    root, scale = np.sqrt(grid.alphas), np.sqrt(grid.alphas_next)
    rows = Rows()
    for n, (sigma, target) in enumerate(zip(grid.sigmas, grid.sigmas_next, strict=True)):
        p, q = clean_latent(grid.alphas[n])
        if target == 0:
            rows.add(grid.timesteps[n], grid.alphas[n], 0.0, [1.0], p=p, q=q)
            continue
        middle = np.sqrt(sigma * target)
        unit = 1 / np.sqrt(1 + middle**2)
        (down_half, up_half), (down, up) = (ancestral_step(sigma, to) for to in (middle, target))
        half, whole = down_half / sigma, down / sigma
        a, b = unit * half / root[n], [unit * (1 - half)]
        rows.add(grid.timesteps[n], grid.alphas[n], a, b, unit * up_half, p, q)
        back = whole / half
        first, second = np.sqrt(np.array([sigma - middle, middle - target]) / (sigma - target))
        a, b = scale[n] * back / unit, [scale[n] * (1 - whole), -scale[n] * back * (1 - half)]
        t, (p, q) = float(timestep_of(middle, grid.known)), clean_latent(unit**2)
        before = scale[n] * (up * first - back * up_half)
        c = scale[n] * up * second
        rows.add(t, unit**2, a, b, c, p, q, c_before=before, again=True)
    return rows.table(last_alpha(grid), noise_alone(grid))
