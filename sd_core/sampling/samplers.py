"""Samplers as tables: name -> coefficients of one linear update a model evaluation.

Every sampler here is linear in the latent, its past model outputs and fresh noise. So it is a
function from a timestep grid to a `StepTable`, and `sd_core.sampling.slots` runs them all.

Latents are kept at unit variance (x = √a·x_0 + √(1 - a)·noise) throughout; samplers written for
latents of variance 1 + σ² (Karras et al. 2022) are divided by √(1 + σ²), which only changes
coefficients. Torch-free, float64.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from sd_core.sampling.schedule import (
    Array,
    Grid,
    alphas_cumprod,
    dpm_grid,
    leading_grid,
    linspace_grid,
)
from sd_core.spec import SAMPLER_TABLE, SAMPLERS, Sampling

LMS_ORDER = 4

MOST_HISTORY = 5
"""Past outputs that a table reads at most, the newest included."""


class Number(enum.IntEnum):
    """Columns of `StepTable.numbers`."""

    A = 0
    P = 1
    Q = 2
    C = 3
    KNOWN = 4  # of the clean init image and its noise, outside a mask, after the row
    KNOWN_NOISE = 5
    GUIDANCE = 6  # of the image, not of the table
    B = 7  # the first of MOST_HISTORY


NUMBERS = Number.B + MOST_HISTORY


@dataclass(frozen=True, eq=False)
class StepTable:
    """Coefficients of a trajectory, one row a model evaluation.

    With eps the guided model output at (x, t[i]), row i pushes u_i = p[i]·x + q[i]·eps on the
    history and moves x to A[i]·x + Σ_k B[i, k]·u_{i-k} + C[i]·noise.

    t: (N,) timesteps given to the model, fractional on linspace and Karras grids.
    A, C, p, q: (N,).  B: (N, K), the newest output first.
    alphas: (N + 1,) cumulative alpha of x before each row, and after the last.
    steps: (N,) step that each row belongs to, from 1.
    initial_noise: what unit noise is multiplied with to start from noise alone.
    """

    t: Array
    A: Array
    B: Array
    C: Array
    p: Array
    q: Array
    alphas: Array
    steps: NDArray[np.int64]
    initial_noise: float = 1.0

    def __len__(self) -> int:
        return len(self.t)

    @property
    def history(self) -> int:
        """Number of past outputs that the update reads, the newest included."""
        return self.B.shape[1]

    @cached_property
    def numbers(self) -> NDArray[np.float32]:
        """(N, NUMBERS) float32: all that a step needs to know of its row."""
        numbers = np.zeros((len(self), NUMBERS), dtype=np.float32)
        columns = {Number.A: self.A, Number.P: self.p, Number.Q: self.q, Number.C: self.C}
        for column, values in columns.items():
            numbers[:, column] = values
        alphas = self.alphas[1:].tolist()
        alphas[-1:] = [1.0]  # the init image itself comes back
        # Python's powers: numpy's square roots differ from them in the last bit of some.
        numbers[:, Number.KNOWN] = [alpha**0.5 for alpha in alphas[: len(self)]]
        numbers[:, Number.KNOWN_NOISE] = [(1 - alpha) ** 0.5 for alpha in alphas[: len(self)]]
        numbers[:, Number.B : Number.B + self.history] = self.B
        return numbers


@dataclass
class _Rows:
    """A table in the making. `b` may be of any length; `p`, `q` default to u = eps."""

    t: list[float] = field(default_factory=list)
    coefficients: list[tuple[float, float, float, float]] = field(default_factory=list)
    outputs: list[Sequence[float]] = field(default_factory=list)
    alphas: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def add(
        self,
        t: float,
        alpha: float,
        a: float,
        b: Sequence[float],
        c: float = 0.0,
        p: float = 0.0,
        q: float = 1.0,
        *,
        again: bool = False,
    ) -> None:
        """again: a further evaluation of the step before."""
        self.t.append(t)
        self.alphas.append(alpha)
        self.coefficients.append((a, c, p, q))
        self.outputs.append(b)
        before = self.steps[-1] if self.steps else 0
        self.steps.append(before if again else before + 1)

    def table(self, final_alpha: float, initial_noise: float = 1.0) -> StepTable:
        width = max((len(b) for b in self.outputs), default=1)
        B = np.zeros((len(self.t), width))
        for row, b in zip(B, self.outputs, strict=True):
            row[: len(b)] = b
        A, C, p, q = np.array(self.coefficients, dtype=np.float64).reshape(-1, 4).T
        alphas = np.array([*self.alphas, final_alpha])
        steps = np.array(self.steps, dtype=np.int64)
        return StepTable(np.array(self.t), A, B, C, p, q, alphas, steps, initial_noise)


def plms(grid: Grid) -> StepTable:
    """Pseudo linear multistep (Liu et al. 2022), as the CompVis code runs it: S + 1 evaluations.

    The first step is an improved Euler step: its second evaluation, at the next timestep, is
    averaged with the first and then forgotten. The zeros below skip it in the history.
    """
    A = np.sqrt(grid.alphas_next / grid.alphas)
    b = np.sqrt(1 - grid.alphas_next) - A * np.sqrt(1 - grid.alphas)
    rows = _Rows()
    if len(grid):
        rows.add(grid.timesteps[0], grid.alphas[0], A[0], [b[0]])
        second = grid.timesteps[min(1, len(grid) - 1)]
        rows.add(second, grid.alphas_next[0], 1.0, [b[0] / 2, -b[0] / 2], again=True)
    adams_bashforth = (
        np.array([3 / 2, 0, -1 / 2]),
        np.array([23 / 12, -16 / 12, 0, 5 / 12]),
        np.array([55 / 24, -59 / 24, 37 / 24, 0, -9 / 24]),
        np.array([55 / 24, -59 / 24, 37 / 24, -9 / 24]),
    )
    for n in range(1, len(grid)):
        weights = adams_bashforth[min(n, 4) - 1]
        rows.add(grid.timesteps[n], grid.alphas[n], A[n], b[n] * weights)
    return rows.table(_last_alpha(grid))


def ddim(grid: Grid, eta: float = 0.0) -> StepTable:
    """DDIM (Song et al. 2020, eq. 12 and 16): one evaluation a step, no memory.

    eta: share of the noise of the ancestral sampler that is put back, 0 for none.
    """
    a, a_next = grid.alphas, grid.alphas_next
    A = np.sqrt(a_next / a)
    sigma = eta * np.sqrt((1 - a_next) / (1 - a)) * np.sqrt(1 - a / a_next)
    b = np.sqrt(1 - a_next - sigma**2) - A * np.sqrt(1 - a)
    rows = _Rows()
    for n in range(len(grid)):
        rows.add(grid.timesteps[n], a[n], A[n], [b[n]], c=sigma[n])
    return rows.table(_last_alpha(grid))


def ddpm(grid: Grid) -> StepTable:
    """Ancestral sampling (Ho et al. 2020, eq. 6 and 7), strided, with the smaller variance."""
    a, a_next = grid.alphas, grid.alphas_next
    alpha = a / a_next  # of the whole stride
    of_clean = np.sqrt(a_next) * (1 - alpha) / (1 - a)
    of_x = np.sqrt(alpha) * (1 - a_next) / (1 - a)
    A = of_x + of_clean / np.sqrt(a)
    b = -of_clean * np.sqrt(1 - a) / np.sqrt(a)
    C = np.sqrt((1 - a_next) / (1 - a) * (1 - alpha))
    rows = _Rows()
    for n in range(len(grid)):
        rows.add(grid.timesteps[n], a[n], A[n], [b[n]], c=C[n])
    return rows.table(_last_alpha(grid))


def euler(grid: Grid) -> StepTable:
    """Euler steps of the probability flow ODE (Karras et al. 2022, alg. 1 without churn)."""
    scale = np.sqrt(grid.alphas_next)
    A, dt = scale / np.sqrt(grid.alphas), grid.sigmas_next - grid.sigmas
    rows = _Rows()
    for n in range(len(grid)):
        rows.add(grid.timesteps[n], grid.alphas[n], A[n], [scale[n] * dt[n]])
    return rows.table(_last_alpha(grid), _noise_alone(grid))


def euler_a(grid: Grid) -> StepTable:
    """Euler with ancestral noise (k-diffusion's `sample_euler_ancestral`, eta 1)."""
    sigmas, sigmas_next = grid.sigmas, grid.sigmas_next
    up = np.sqrt(sigmas_next**2 * (sigmas**2 - sigmas_next**2) / sigmas**2)
    down = np.sqrt(sigmas_next**2 - up**2)
    scale = np.sqrt(grid.alphas_next)
    A, b, C = scale / np.sqrt(grid.alphas), scale * (down - sigmas), scale * up
    rows = _Rows()
    for n in range(len(grid)):
        rows.add(grid.timesteps[n], grid.alphas[n], A[n], [b[n]], c=C[n])
    return rows.table(_last_alpha(grid), _noise_alone(grid))


def heun(grid: Grid) -> StepTable:
    """Heun's second order method (Karras et al. 2022, alg. 1): 2·S - 1 evaluations.

    The second evaluation of a step replaces the slope by the mean of both: from the Euler point
    that is half a step along their difference. The last step, to no noise, is Euler's.
    """
    scale = np.sqrt(grid.alphas_next)
    A, dt = scale / np.sqrt(grid.alphas), grid.sigmas_next - grid.sigmas
    rows = _Rows()
    for n in range(len(grid)):
        rows.add(grid.timesteps[n], grid.alphas[n], A[n], [scale[n] * dt[n]])
        if n + 1 < len(grid):
            half = scale[n] * dt[n] / 2
            second = grid.timesteps[n + 1]
            rows.add(second, grid.alphas_next[n], 1.0, [half, -half], again=True)
    return rows.table(_last_alpha(grid), _noise_alone(grid))


def lms(grid: Grid) -> StepTable:
    """Linear multistep over the noise levels, order 4 (k-diffusion's `sample_lms`)."""
    scale = np.sqrt(grid.alphas_next)
    A = scale / np.sqrt(grid.alphas)
    sigmas, sigmas_next = grid.sigmas, grid.sigmas_next
    rows = _Rows()
    for n in range(len(grid)):
        past = sigmas[max(0, n + 1 - LMS_ORDER) : n + 1][::-1]
        weights = _lagrange_integrals(past, sigmas[n], sigmas_next[n])
        rows.add(grid.timesteps[n], grid.alphas[n], A[n], scale[n] * weights)
    return rows.table(_last_alpha(grid), _noise_alone(grid))


def _lagrange_integrals(nodes: Array, start: float, end: float) -> Array:
    """Integral from start to end of each Lagrange basis polynomial over the nodes."""
    weights = []
    for k, node in enumerate(nodes):
        others = np.delete(nodes, k)
        # Around `start`, so that nearby noise levels do not cancel in powers of large numbers.
        basis = np.poly1d(others - start, r=True) / np.prod(node - others)
        weights.append(basis.integ()(end - start))
    return np.array(weights)


def dpmpp_2m(grid: Grid) -> StepTable:
    """DPM-Solver++ 2M (Lu et al. 2022, alg. 2): multistep in the predicted clean latent.

    First order at the start and, as it leads to no noise, at the end.
    """
    a, a_next = grid.alphas, grid.alphas_next
    with np.errstate(divide="ignore"):
        # Half log signal-to-noise ratio; infinite where the last step leads.
        lambdas, lambdas_next = -np.log(grid.sigmas), -np.log(grid.sigmas_next)
    h = lambdas_next - lambdas
    A = np.sqrt((1 - a_next) / (1 - a))
    first = np.sqrt(a_next) * -np.expm1(-h)
    p, q = 1 / np.sqrt(a), -np.sqrt(1 - a) / np.sqrt(a)  # u is the predicted clean latent
    rows = _Rows()
    for n in range(len(grid)):
        if n == 0 or n == len(grid) - 1:
            b = [first[n]]
        else:
            half = first[n] * h[n] / (2 * h[n - 1])
            b = [first[n] + half, -half]
        rows.add(grid.timesteps[n], a[n], A[n], b, p=p[n], q=q[n])
    return rows.table(_last_alpha(grid))


def _last_alpha(grid: Grid) -> float:
    """Cumulative alpha at which a table ends: 1, a clean latent, for a grid without points."""
    return float(grid.alphas_next[-1]) if len(grid) else 1.0


def _noise_alone(grid: Grid) -> float:
    """k-diffusion and diffusers start these samplers from σ·noise, not from unit variance."""
    return float(np.sqrt(1 - grid.alphas[0])) if len(grid) else 1.0


def grid_of(sampler: str, steps: int, *, karras: bool) -> Grid:
    """The grid of timesteps that the table of samplers says."""
    kind = SAMPLER_TABLE[sampler].grid
    if kind == "leading":
        return leading_grid(steps, final_alpha=float(alphas_cumprod()[0]))
    if kind == "leading to 1":
        return leading_grid(steps, final_alpha=1.0)
    if kind == "dpm":
        return dpm_grid(steps, karras=karras)
    return linspace_grid(steps, karras=karras)


@lru_cache(maxsize=1024)
def step_table(
    sampler: str = SAMPLERS[0],
    steps: int = 50,
    *,
    strength: float | None = None,
    eta: float = 0.0,
    karras: bool = False,
) -> StepTable:
    """The table of a sampler by name.

    strength: None starts from noise. Otherwise the latent of an init image enters where
        `min(int(steps * strength), steps)` points are left (diffusers' rule), noised to
        `alphas[0]`; the table is that of the remaining grid, so multistep samplers start there
        without a history, on the timesteps at which the latent really is. (diffusers' PLMS and LMS
        do not: from the third evaluation on its PNDM scheduler asks the model one timestep too far,
        and its LMS uses fourth-order weights before it has four outputs.)
    eta: ddim only. karras: see `sd_core.spec.KARRAS_SAMPLERS`.
    Raises ValueError for an unknown sampler or a value out of range.
    """
    Sampling(
        sampler=sampler,
        steps=steps,
        eta=eta,
        karras=karras,
        strength=1.0 if strength is None else strength,
    )
    grid = grid_of(sampler, steps, karras=karras)
    if strength is not None:
        grid = grid.after(start_point(steps, strength))
    table: Callable[..., StepTable] = globals()[sampler]
    return table(grid, eta) if sampler == "ddim" else table(grid)


def start_point(steps: int, strength: float) -> int:
    """Grid point at which an init image of this strength enters: 0 is pure noise, `steps` none."""
    return steps - min(int(steps * strength), steps)


def evaluations(sampler: str, steps: int, strength: float | None = None) -> int:
    """Model evaluations of a whole trajectory; strength is None without an init image."""
    points = steps if strength is None else steps - start_point(steps, strength)
    return SAMPLER_TABLE[sampler].evaluations(points) if points else 0
