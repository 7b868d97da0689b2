"""How fast samplers converge, on a model whose trajectories are known in closed form."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from sd_core.sampler_table import SAMPLER_TABLE
from sd_core.sampling.schedule import Grid, alphas_cumprod
from sd_core.sampling.step_table import StepTable

FRESH_NOISE = {
    *("ddpm", "euler_a", "dpm2_a", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_2s_a", "dpmpp_sde"),
    "sa_solver",
}
STEPS = (80, 160, 320)


def uneven_grid(steps: int) -> Grid:
    """From σ 8 to 0.2, in steps of log σ that shrink to a third."""
    share = np.linspace(0, 1, steps + 1)
    share += share * (1 - share) / 2
    sigmas = 8.0 * (0.2 / 8.0) ** share
    alphas = 1 / (1 + sigmas**2)
    return Grid(np.linspace(700, 300, steps), alphas[:-1], alphas[1:], alphas_cumprod())


def log_snr(alpha: float) -> float:
    return float(np.log(alpha / (1 - alpha)) / 2)


def exact(alpha: float, start: float, rate: int) -> float:
    """x at `alpha` of the trajectory that is 1 at `start`, for a clean latent of sin λ everywhere.

    With X = x/√a, dX/dλ = rate·(sin λ - X): rate 1 for the probability flow ODE, 2 for the mean of
    the reverse SDE.
    """

    def forced(at: float) -> float:
        return float((rate**2 * np.sin(at) - rate * np.cos(at)) / (rate**2 + 1))

    begin, end = log_snr(start), log_snr(alpha)
    gone = np.exp(-rate * (end - begin)) * (1 / np.sqrt(start) - forced(begin))
    return float(np.sqrt(alpha) * (gone + forced(end)))


def error(table: StepTable, rate: int) -> float:
    """Without fresh noise, after all steps but the last three, which some take with a lower order.

    The first four steps start on the exact trajectory, which gives multistep samplers a history.
    """
    x, outputs = 0.0, []
    rows = np.flatnonzero(table.steps <= table.steps[-1] - 3)
    for i in rows:
        alpha = table.alphas[i]
        if table.steps[i] <= 4 and (i == 0 or table.steps[i] > table.steps[i - 1]):
            x = exact(alpha, table.alphas[0], rate)
        eps = (x - np.sqrt(alpha) * np.sin(log_snr(alpha))) / np.sqrt(1 - alpha)
        outputs = [table.p[i] * x + table.q[i] * eps, *outputs]
        x = table.A[i] * x + sum(b * u for b, u in zip(table.B[i], outputs, strict=False))
    return abs(x - exact(table.alphas[rows[-1] + 1], table.alphas[0], rate))


@pytest.mark.parametrize("sampler", [name for name, row in SAMPLER_TABLE.items() if row.order])
def test_the_error_falls_with_the_order_of_the_table(sampler):
    make = getattr(import_module(f"sd_core.sampling.{SAMPLER_TABLE[sampler].module}"), sampler)
    rate = 2 if sampler in FRESH_NOISE else 1
    errors = [error(make(uneven_grid(steps)), rate) for steps in STEPS]
    slope = np.log2(errors[-2] / errors[-1])
    assert slope == pytest.approx(SAMPLER_TABLE[sampler].order, abs=0.15)
    assert errors[0] > errors[1] > errors[2]


def test_three_clean_latents_would_be_of_order_3_with_twice_the_curvature(monkeypatch):
    """The published programs of DPM++ 3M take h²·x''/2 for h²·x''."""
    whole = import_module("sd_core.sampling.dpm")
    phi = whole._phi
    monkeypatch.setattr(whole, "_phi", lambda h: (phi(h)[0], 2 * phi(h)[1]))
    for make, rate in ((whole.dpmpp_3m, 1), (whole.dpmpp_3m_sde, 2)):
        few, many = (error(make(uneven_grid(steps)), rate) for steps in STEPS[1:])
        assert np.log2(few / many) == pytest.approx(3, abs=0.15)
