"""Samplers that step from one noise level σ to the next (Karras et al. 2022)."""

from __future__ import annotations

import numpy as np

from sd_core.sampling.schedule import Array, Grid, timestep_of
from sd_core.sampling.step_table import (
    ADAMS_BASHFORTH,
    Rows,
    StepTable,
    ancestral,
    last_alpha,
    noise_alone,
)

LMS_ORDER = 4
FEW_STEPS = 15
"""Below so many steps, the last of `deis` is of first order (diffusers)."""


def euler(grid: Grid) -> StepTable:
    """Euler steps of the probability flow ODE (Karras et al. 2022, alg. 1 without churn)."""
    scale = np.sqrt(grid.alphas_next)
    A, dt = scale / np.sqrt(grid.alphas), grid.sigmas_next - grid.sigmas
    rows = Rows()
    for n in range(len(grid)):
        rows.add(grid.timesteps[n], grid.alphas[n], A[n], [scale[n] * dt[n]])
    return rows.table(last_alpha(grid), noise_alone(grid))


def euler_a(grid: Grid) -> StepTable:
    """Euler with ancestral noise (k-diffusion's `sample_euler_ancestral`, eta 1)."""
    down, up = ancestral(grid)
    scale = np.sqrt(grid.alphas_next)
    A, b, C = scale / np.sqrt(grid.alphas), scale * (down - grid.sigmas), scale * up
    rows = Rows()
    for n in range(len(grid)):
        rows.add(grid.timesteps[n], grid.alphas[n], A[n], [b[n]], c=C[n])
    return rows.table(last_alpha(grid), noise_alone(grid))


def heun(grid: Grid) -> StepTable:
    """Heun's second order method (Karras et al. 2022, alg. 1): 2·S - 1 evaluations.

    The second evaluation of a step replaces the slope by the mean of both: from the Euler point
    that is half a step along their difference. The last step, to no noise, is Euler's.
    """
    scale = np.sqrt(grid.alphas_next)
    A, dt = scale / np.sqrt(grid.alphas), grid.sigmas_next - grid.sigmas
    rows = Rows()
    for n in range(len(grid)):
        rows.add(grid.timesteps[n], grid.alphas[n], A[n], [scale[n] * dt[n]])
        if n + 1 < len(grid):
            half = scale[n] * dt[n] / 2
            second = grid.timesteps[n + 1]
            rows.add(second, grid.alphas_next[n], 1.0, [half, -half], again=True)
    return rows.table(last_alpha(grid), noise_alone(grid))


def lms(grid: Grid) -> StepTable:
    """Linear multistep over the noise levels, order 4 (k-diffusion's `sample_lms`)."""
    scale = np.sqrt(grid.alphas_next)
    A = scale / np.sqrt(grid.alphas)
    sigmas, sigmas_next = grid.sigmas, grid.sigmas_next
    rows = Rows()
    for n in range(len(grid)):
        past = sigmas[max(0, n + 1 - LMS_ORDER) : n + 1][::-1]
        weights = _lagrange_integrals(past, sigmas[n], sigmas_next[n])
        rows.add(grid.timesteps[n], grid.alphas[n], A[n], scale[n] * weights)
    return rows.table(last_alpha(grid), noise_alone(grid))


def _lagrange_integrals(nodes: Array, start: float, end: float) -> Array:
    """Integral from start to end of each Lagrange basis polynomial over the nodes."""
    weights = []
    for k, node in enumerate(nodes):
        others = np.delete(nodes, k)
        # Around `start`, so that nearby noise levels do not cancel in powers of large numbers.
        basis = np.poly1d(others - start, r=True) / np.prod(node - others)
        weights.append(basis.integ()(end - start))
    return np.array(weights)


def ipndm(grid: Grid) -> StepTable:
    """Improved pseudo linear multistep (Zhang & Chen 2022), order 4: the weights of `plms`, without
    its double evaluation at the start, over noise levels (ComfyUI's `sample_ipndm`).
    """
    scale = np.sqrt(grid.alphas_next)
    A, dt = scale / np.sqrt(grid.alphas), grid.sigmas_next - grid.sigmas
    rows = Rows()
    for n in range(len(grid)):
        weights = ADAMS_BASHFORTH[min(n, len(ADAMS_BASHFORTH) - 1)]
        rows.add(grid.timesteps[n], grid.alphas[n], A[n], scale[n] * dt[n] * weights)
    return rows.table(last_alpha(grid), noise_alone(grid))


def deis(grid: Grid) -> StepTable:
    """DEIS of order 2 over log σ (Zhang & Chen 2022, log ρ of eq. 15), as in diffusers: it ends at
    the least noise that the model knows, not without any.
    """
    scale = np.sqrt(grid.alphas_next)
    A = scale / np.sqrt(grid.alphas)
    sigmas, sigmas_next = grid.sigmas, grid.sigmas_next
    last = len(grid) - 1
    rows = Rows()
    for n in range(len(grid)):
        b = np.array([sigmas_next[n] - sigmas[n]])
        if n and not (n == last and grid.steps < FEW_STEPS):
            b = np.array(
                [
                    _log_line(sigmas[n], sigmas_next[n], sigmas[n], sigmas[n - 1]),
                    _log_line(sigmas[n], sigmas_next[n], sigmas[n - 1], sigmas[n]),
                ]
            )
        rows.add(grid.timesteps[n], grid.alphas[n], A[n], scale[n] * b)
    return rows.table(last_alpha(grid))


def _log_line(start: float, end: float, one: float, zero: float) -> float:
    """Integral from start to end of the line over log σ that is 1 at `one` and 0 at `zero`."""

    def integral(sigma: float) -> float:
        return sigma * (np.log(sigma) - np.log(zero) - 1) / (np.log(one) - np.log(zero))

    return integral(end) - integral(start)


def dpm2(grid: Grid) -> StepTable:
    """DPM-Solver-2 (Karras et al. 2022, alg. 2 without churn): 2·S - 1 evaluations.

    The slope of a step is that in its middle, which lies halfway in log σ. The last step, to no
    noise, is Euler's.
    """
    return _midpoint(grid, grid.sigmas_next, np.zeros(len(grid)))


def dpm2_a(grid: Grid) -> StepTable:
    """`dpm2` with ancestral noise (k-diffusion's `sample_dpm_2_ancestral`, eta 1)."""
    return _midpoint(grid, *ancestral(grid))


def _midpoint(grid: Grid, down: Array, up: Array) -> StepTable:
    """Steps to noise levels `down`, with noise of `up` added then."""
    root, scale = np.sqrt(grid.alphas), np.sqrt(grid.alphas_next)
    rows = Rows()
    for n, sigma in enumerate(grid.sigmas):
        if down[n] == 0:
            b = scale[n] * (down[n] - sigma)
            rows.add(grid.timesteps[n], grid.alphas[n], scale[n] / root[n], [b], c=scale[n] * up[n])
            continue
        middle = np.sqrt(sigma * down[n])
        of_middle = 1 / np.sqrt(1 + middle**2)  # times x of variance 1 + σ²
        first, whole = middle - sigma, down[n] - sigma
        rows.add(grid.timesteps[n], grid.alphas[n], of_middle / root[n], [of_middle * first])
        rows.add(
            *(float(timestep_of(middle, grid.known)), of_middle**2, scale[n] / of_middle),
            [scale[n] * whole, -scale[n] * first],
            c=scale[n] * up[n],
            again=True,
        )
    return rows.table(last_alpha(grid), noise_alone(grid))
