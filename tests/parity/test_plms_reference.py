"""PLMS against its definition, written out step by step as the CompVis sampler runs it.

Nothing here uses our tables: the multistep weights are re-derived from Lagrange interpolation and
the step is DDIM's transfer from one cumulative alpha to the next.
"""

from __future__ import annotations

import numpy as np
import pytest

from sd_core.sampling.samplers import step_table


def model(x: np.ndarray, t: float) -> np.ndarray:
    return np.tanh(0.8 * x + t / 2000) + 0.1 * np.cos(5 * x)


def schedule() -> np.ndarray:
    betas = np.linspace(np.sqrt(0.00085), np.sqrt(0.0120), 1000) ** 2
    return np.cumprod(1 - betas)


def transfer(x: np.ndarray, eps: np.ndarray, a: float, a_next: float) -> np.ndarray:
    """The clean latent that eps implies, noised again to a_next."""
    clean = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
    return np.sqrt(a_next) * clean + np.sqrt(1 - a_next) * eps


def adams_bashforth(order: int) -> np.ndarray:
    """Weights of the last `order` slopes, newest first: integrals of their interpolation."""
    nodes = -np.arange(order)
    weights = []
    for k in range(order):
        basis = np.polynomial.Polynomial([1.0])
        for j in range(order):
            if j != k:
                factor = np.polynomial.Polynomial([-nodes[j], 1.0])
                basis = basis * factor / float(nodes[k] - nodes[j])
        weights.append(basis.integ()(1.0))
    return np.array(weights)


def reference(x: np.ndarray, steps: int) -> np.ndarray:
    alphas = schedule()
    grid = (np.arange(steps) * (1000 // steps) + 1)[::-1]
    past: list[np.ndarray] = []
    for i, t in enumerate(grid):
        a = alphas[t]
        a_next = alphas[grid[i + 1]] if i + 1 < steps else alphas[0]
        eps = model(x, t)
        if not past:
            t_next = grid[min(i + 1, steps - 1)]
            there = transfer(x, eps, a, a_next)
            slope = (eps + model(there, t_next)) / 2
        else:
            newest_first = [eps, *past[::-1]][:4]
            slope = sum(
                w * e for w, e in zip(adams_bashforth(len(newest_first)), newest_first, strict=True)
            )
        past.append(eps)
        x = transfer(x, slope, a, a_next)
    return x


def by_table(x: np.ndarray, steps: int) -> np.ndarray:
    table = step_table("plms", steps)
    outputs: list[np.ndarray] = []
    for i in range(len(table)):
        outputs.insert(0, table.p[i] * x + table.q[i] * model(x, table.t[i]))
        x = table.A[i] * x + sum(w * u for w, u in zip(table.B[i], outputs, strict=False))
    return x


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 10, 30, 50, 100])
def test_table_gives_the_definition(steps):
    x = np.random.default_rng(steps).standard_normal(64)
    expected = reference(x, steps)
    np.testing.assert_allclose(by_table(x, steps), expected, rtol=1e-9, atol=1e-9)


def test_first_rows_literally():
    """The first six rows at 50 steps, from the cumulative alphas alone."""
    alphas = schedule()
    table = step_table("plms", 50)
    a, a_next = alphas[981], alphas[961]
    b = np.sqrt(1 - a_next) - np.sqrt(a_next / a) * np.sqrt(1 - a)
    assert list(table.t[:6]) == [981, 961, 961, 941, 921, 901]
    np.testing.assert_allclose(table.A[:2], [np.sqrt(a_next / a), 1], rtol=1e-12)
    np.testing.assert_allclose(table.B[0], [b, 0, 0, 0, 0], rtol=1e-9)
    np.testing.assert_allclose(table.B[1], [b / 2, -b / 2, 0, 0, 0], rtol=1e-9)
    weights = table.B[2:] / table.B[2:].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weights[0], [3 / 2, 0, -1 / 2, 0, 0], atol=1e-12)
    np.testing.assert_allclose(weights[1], np.array([23, -16, 0, 5, 0]) / 12, atol=1e-12)
    np.testing.assert_allclose(weights[2], np.array([55, -59, 37, 0, -9]) / 24, atol=1e-12)
    expected = np.tile(np.array([55, -59, 37, -9, 0]) / 24, (46, 1))
    np.testing.assert_allclose(weights[3:], expected, atol=1e-12)
