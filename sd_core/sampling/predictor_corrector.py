"""A predictor and a corrector that share evaluations, in the predicted clean latent.

A row first makes up for what the step that led to it got wrong, now that the clean latent there is
known, then takes the next step. Both are sums of outputs; so the corrected latent is x plus the
difference between the weights of the corrector and those that led to x. Noise of that step is the
same in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from sd_core.sampling.dpm import clean_latent, log_snr_steps
from sd_core.sampling.schedule import Array, Grid
from sd_core.sampling.step_table import Rows, StepTable, last_alpha

ORDER = 2
NOISY_FROM, NOISY_TO = 200, 800


def unipc(grid: Grid) -> StepTable:
    """UniPC with B(h) = e^h - 1 (Zhao et al. 2023, alg. 5 and 6, p 2): bh2 of diffusers."""
    return _unified(grid, np.expm1)


def unipc_bh1(grid: Grid) -> StepTable:
    """UniPC with B(h) = h: bh1 of diffusers."""
    return _unified(grid, np.positive)


def _unified(grid: Grid, B: Callable[[float], float]) -> StepTable:
    h = log_snr_steps(grid)
    A = np.sqrt((1 - grid.alphas_next) / (1 - grid.alphas))
    last = len(grid) - 1
    predictors = [
        _unipc(grid, h, n, min(ORDER, n + 1, last + 1 - n), B, corrector=False)
        for n in range(len(grid))
    ]
    correctors = [_unipc(grid, h, n, min(ORDER, n + 1), B, corrector=True) for n in range(last)]
    return _table(grid, A, np.zeros(len(grid)), predictors, correctors)


def sa_solver(grid: Grid) -> StepTable:
    """SA-Solver of order 2, predictor and corrector (Xue et al. 2023, alg. 1), as in diffusers:
    with fresh noise (τ 1) at timesteps 200 to 800, and an end at the least noise that the model
    knows.
    """
    h = log_snr_steps(grid)
    noisy = (grid.timesteps >= NOISY_FROM) & (grid.timesteps <= NOISY_TO)
    along = np.where(noisy, 2.0, 1.0)  # 1 + τ²
    A = np.sqrt((1 - grid.alphas_next) / (1 - grid.alphas)) * np.exp(-(along - 1) * h)
    C = np.sqrt(1 - grid.alphas_next) * np.sqrt(-np.expm1(-2 * (along - 1) * h))
    last = len(grid) - 1
    predictors, correctors = [], []
    for n in range(len(grid)):
        total = np.sqrt(grid.alphas_next[n]) * -np.expm1(-along[n] * h[n])
        # Half of h² along, as published, for the integral of the way, from which it differs by h³.
        slope = np.sqrt(grid.alphas_next[n]) * along[n] * h[n] / 2
        back = slope * h[n] / h[n - 1] if 0 < n < last else 0.0
        predictors.append(np.array([total + back, -back]))
        correctors.append(np.array([slope, total - slope]))
    return _table(grid, A, C, predictors, correctors[:-1])


def _table(
    grid: Grid, A: Array, C: Array, predictors: Sequence[Array], correctors: Sequence[Array]
) -> StepTable:
    """predictors: weights of each step, of clean latents from that at its start back.
    correctors: of each step but the last, from that at its end back.
    """
    rows = Rows()
    for n, predictor in enumerate(predictors):
        b = np.zeros(ORDER + 1)
        if n:
            b[: len(correctors[n - 1])] = correctors[n - 1]
            b[1 : 1 + len(predictors[n - 1])] -= predictors[n - 1]
            b *= A[n]
        b[: len(predictor)] += predictor
        p, q = clean_latent(grid.alphas[n])
        rows.add(grid.timesteps[n], grid.alphas[n], A[n], b, C[n], p, q)
    return rows.table(last_alpha(grid))


def _unipc(
    grid: Grid, h: Array, n: int, order: int, B: Callable[[float], float], *, corrector: bool
) -> Array:
    """Weights of clean latents in step n, the newest first: from that at the step's end for a
    corrector, from that at its start for a predictor.
    """
    scale = np.sqrt(grid.alphas_next[n])
    total = np.expm1(-h[n])
    # Where the other latents are, in steps from the start: those before, and the end.
    ratios = np.array([-h[n - k : n].sum() / h[n] for k in range(1, order)] + [1.0] * corrector)
    # The integrals of the step for each power, over B; `rho` solves for all of them at once.
    integrals, integral = [], total / -h[n] - 1
    for k in range(1, len(ratios) + 1):
        integrals.append(integral * math.factorial(k) / B(-h[n]))
        integral = integral / -h[n] - 1 / math.factorial(k + 1)
    if len(ratios) < 2:
        rho = np.array([0.5])  # as published for one unknown
    else:
        powers = np.vander(ratios, increasing=True).T
        rho = np.linalg.solve(powers, integrals)
    slopes = scale * B(-h[n]) * rho[: len(ratios)] / ratios
    start = -scale * total + slopes.sum()
    return np.array([*-slopes[order - 1 :], start, *-slopes[: order - 1]])
