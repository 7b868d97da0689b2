"""DPM-Solver++ of several steps (Lu et al. 2022): in the predicted clean latent, over log SNR.

λ is half the log signal-to-noise ratio, -log σ, and h the step in it; it is infinite for a step
that leads to no noise, which is always of first order: the predicted clean latent itself.
"""

from __future__ import annotations

import numpy as np

from sd_core.sampling.schedule import Array, Grid
from sd_core.sampling.step_table import Rows, StepTable, last_alpha

FEW_STEPS = 15
"""Below so many steps, the last but one of a third-order solver is of second order (diffusers)."""


def dpmpp_2m(grid: Grid) -> StepTable:
    """DPM-Solver++ 2M (Lu et al. 2022, alg. 2): multistep in the predicted clean latent.

    First order at the start and, as it leads to no noise, at the end.
    """
    h = log_snr_steps(grid)
    outputs = [
        _first_order(grid, h, n) if n in (0, len(grid) - 1) else _second_order(grid, h, h, n)
        for n in range(len(grid))
    ]
    return _multistep(grid, outputs, _of_ode(grid))


def dpmpp_2m_sde(grid: Grid) -> StepTable:
    """The SDE form of `dpmpp_2m` (Lu et al. 2022, app. B.5), with fresh noise in every step but the
    last (k-diffusion's `sample_dpmpp_2m_sde`, midpoint, eta 1).
    """
    h = log_snr_steps(grid)
    outputs = [
        _first_order(grid, 2 * h, n)
        if n in (0, len(grid) - 1)
        else _second_order(grid, h, 2 * h, n)
        for n in range(len(grid))
    ]
    return _multistep(grid, outputs, *_of_sde(grid, h))


def dpmpp_3m(grid: Grid) -> StepTable:
    """DPM-Solver++ 3M: `dpmpp_2m` with the curvature of three clean latents (diffusers, order 3).

    Of lower order where fewer are known, and at the end: with few steps at the last two. The
    published curvature lacks a factor of 2, so that the order that is measured is 2.
    """
    h = log_snr_steps(grid)
    last = len(grid) - 1
    outputs = []
    for n in range(len(grid)):
        if n in (0, last):
            outputs.append(_first_order(grid, h, n))
        elif n == 1 or (n == last - 1 and grid.steps < FEW_STEPS):
            outputs.append(_second_order(grid, h, h, n))
        else:
            outputs.append(_third_order(grid, h, h, n))
    return _multistep(grid, outputs, _of_ode(grid))


def dpmpp_3m_sde(grid: Grid) -> StepTable:
    """The SDE form of `dpmpp_3m` (k-diffusion's `sample_dpmpp_3m_sde`, eta 1).

    diffusers' has the sign of a half wrong in its third term: see `tests/parity/test_samplers.py`.
    """
    h = log_snr_steps(grid)
    outputs = []
    for n in range(len(grid)):
        if n in (0, len(grid) - 1):
            outputs.append(_first_order(grid, 2 * h, n))
        elif n == 1:
            phi = _phi(2 * h[n])[0] * np.sqrt(grid.alphas_next[n])
            slope = phi * h[n] / h[n - 1]
            outputs.append(_first_order(grid, 2 * h, n) + np.array([slope, -slope, 0]))
        else:
            outputs.append(_third_order(grid, h, 2 * h, n))
    return _multistep(grid, outputs, *_of_sde(grid, h))


def log_snr_steps(grid: Grid) -> Array:
    """Steps in λ: infinite where one leads to no noise."""
    with np.errstate(divide="ignore"):
        return np.log(grid.sigmas) - np.log(grid.sigmas_next)


def clean_latent(alpha: float) -> tuple[float, float]:
    """p and q of a row whose output is the predicted clean latent."""
    return 1 / np.sqrt(alpha), -np.sqrt(1 - alpha) / np.sqrt(alpha)


def _of_ode(grid: Grid) -> Array:
    """A of each step."""
    return np.sqrt((1 - grid.alphas_next) / (1 - grid.alphas))


def _of_sde(grid: Grid, h: Array) -> tuple[Array, Array]:
    """A and C of each step."""
    return _of_ode(grid) * np.exp(-h), np.sqrt(1 - grid.alphas_next) * np.sqrt(-np.expm1(-2 * h))


# Weights of the predicted clean latents of a step. h: steps in λ, from which slopes are made.
# along: the same for an ODE, twice as much for an SDE.


def _first_order(grid: Grid, along: Array, n: int) -> Array:
    return np.array([np.sqrt(grid.alphas_next[n]) * -np.expm1(-along[n]), 0, 0])


def _second_order(grid: Grid, h: Array, along: Array, n: int) -> Array:
    first = _first_order(grid, along, n)
    half = first[0] * h[n] / (2 * h[n - 1])
    return first + np.array([half, -half, 0])


def _third_order(grid: Grid, h: Array, along: Array, n: int) -> Array:
    newer, older = h[n - 1] / h[n], h[n - 2] / h[n]
    slope = np.array([1, -1, 0]) / newer
    bend = (slope - np.array([0, 1, -1]) / older) / (newer + older)
    second, third = _phi(along[n])
    step = np.sqrt(grid.alphas_next[n]) * (second * (slope + newer * bend) - third * bend)
    return _first_order(grid, along, n) + step


def _phi(h: float) -> tuple[float, float]:
    """The second and third of the integrals that exponential integrators are made of, of -h
    (Hochbruck & Ostermann 2010, eq. 2.10), times h and h².
    """
    second = np.expm1(-h) / h + 1
    return second, second / h - 0.5


def _multistep(grid: Grid, weights: list[Array], A: Array, C: Array | None = None) -> StepTable:
    """weights: of each step, of predicted clean latents."""
    rows = Rows()
    for n, b in enumerate(weights):
        p, q = clean_latent(grid.alphas[n])
        c = 0.0 if C is None else C[n]
        rows.add(grid.timesteps[n], grid.alphas[n], A[n], b, c=c, p=p, q=q)
    return rows.table(last_alpha(grid))
