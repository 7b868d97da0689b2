"""Tables of steps, which are what a sampler is: coefficients of a linear update an evaluation.

Every sampler here is linear in the latent, its past model outputs and fresh noise. So it is a
function from a timestep grid to a `StepTable`, and `sd_core.sampling.slots` runs them all.

Latents are kept at unit variance (x = √a·x_0 + √(1 - a)·noise) throughout; samplers written for
latents of variance 1 + σ² (Karras et al. 2022) are divided by √(1 + σ²), which only changes
coefficients. Torch-free, float64.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sd_core.sampling.schedule import Array, Grid

MOST_HISTORY = 5
"""Past outputs that a table reads at most, the newest included."""

MOST_NOISE = 2
"""Draws of fresh noise that a row reads at most, its own included."""


class Number(enum.IntEnum):
    """Columns of `StepTable.numbers`."""

    A = 0
    P = 1
    Q = 2
    KNOWN = 3  # of the clean init image and its noise, outside a mask, after the row
    KNOWN_NOISE = 4
    GUIDANCE = 5  # of the image, not of the table
    C = 6  # the first of MOST_NOISE
    B = C + MOST_NOISE  # the first of MOST_HISTORY


NUMBERS = Number.B + MOST_HISTORY


@dataclass(frozen=True, eq=False)
class StepTable:
    """Coefficients of a trajectory, one row a model evaluation.

    With eps the guided model output at (x, t[i]), row i pushes u_i = p[i]·x + q[i]·eps on the
    history and moves x to A[i]·x + Σ_k B[i, k]·u_{i-k} + Σ_k C[i, k]·noise_{i-k}.

    t: (N,) timesteps given to the model, fractional on linspace and Karras grids.
    A, p, q: (N,).  B: (N, K), the newest output first.
    C: (N, J), the newest noise first, J 1 or MOST_NOISE. A row draws unit normal noise where its
        C[i, 0] is not 0; noise of the row before is read only where that drew some.
    alphas: (N + 1,) cumulative alpha of x before each row, and after the last.
    steps: (N,) step that each row belongs to, from 1.
    initial_noise: what unit noise is multiplied with to start from noise alone.
    velocity: whether it is for a model that predicts that.
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
    velocity: bool = False

    def __len__(self) -> int:
        return len(self.t)

    @property
    def history(self) -> int:
        """Number of past outputs that the update reads, the newest included."""
        return self.B.shape[1]

    def clean(self, row: int) -> tuple[float, float]:
        """Weights of x and of the model's output in the clean latent that is seen at a row."""
        root, noise = float(self.alphas[row] ** 0.5), float((1 - self.alphas[row]) ** 0.5)
        return (root, -noise) if self.velocity else (1 / root, -noise / root)

    def reads_noise_before(self, row: int) -> bool:
        """True for a row that reads the noise of the row before. row: up to N, which does not."""
        return row < len(self) and self.C.shape[1] > 1 and bool(self.C[row, 1])

    def for_velocity(self) -> StepTable:
        """The same steps with a model that predicts the velocity v = √a·noise - √(1 - a)·x_0
        (Salimans & Ho 2022), for eps = √a·v + √(1 - a)·x.
        """
        a = self.alphas[:-1]
        p, q = self.p + self.q * np.sqrt(1 - a), self.q * np.sqrt(a)
        return replace(self, p=p, q=q, velocity=True)

    def without_signal(self) -> StepTable:
        """The same steps where the first row has next to no signal, for which eps is useless.

        The first output becomes the clean latent. Later rows that read the eps which was there take
        it from x: every row is linear, so that the first x, and with it that eps, is a sum of a
        later x and of the outputs between.
        """
        if not len(self) or self.p[0] != 0:  # there is no row, or its output is no eps
            return self
        A, B, p, q = self.A.copy(), self.B.copy(), self.p.copy(), self.q.copy()
        root, noise = np.sqrt(self.alphas[0]), np.sqrt(1 - self.alphas[0])
        # eps = share·x + Σ outputs[k]·u_k, with x before the row, and u_0 the clean latent.
        share, outputs = 1 / noise, np.zeros(len(self))
        outputs[0] = -root / noise
        p[0], q[0] = 1 / root, -noise / root
        for i in range(len(self)):
            if i < self.history and self.B[i, i]:
                weight, B[i, i] = self.B[i, i], 0.0
                A[i] += weight * share
                B[i, : i + 1] += weight * outputs[i::-1]
            if i + 1 >= self.history:
                break
            share /= A[i]
            outputs[: i + 1] -= share * B[i, i::-1]
        return replace(self, A=A, B=B, p=p, q=q)

    @cached_property
    def numbers(self) -> NDArray[np.float32]:
        """(N, NUMBERS) float32: all that a step needs to know of its row."""
        numbers = np.zeros((len(self), NUMBERS), dtype=np.float32)
        columns = {Number.A: self.A, Number.P: self.p, Number.Q: self.q}
        for column, values in columns.items():
            numbers[:, column] = values
        alphas = self.alphas[1:].tolist()
        alphas[-1:] = [1.0]  # the init image itself comes back
        # Python's powers: numpy's square roots differ from them in the last bit of some.
        numbers[:, Number.KNOWN] = [alpha**0.5 for alpha in alphas[: len(self)]]
        numbers[:, Number.KNOWN_NOISE] = [(1 - alpha) ** 0.5 for alpha in alphas[: len(self)]]
        numbers[:, Number.C : Number.C + self.C.shape[1]] = self.C
        numbers[:, Number.B : Number.B + self.history] = self.B
        return numbers


@dataclass
class Rows:
    """A table in the making. b: weights of at most MOST_HISTORY outputs, the newest first. p, q: by
    default u = eps.
    """

    t: list[float] = field(default_factory=list)
    coefficients: list[tuple[float, float, float]] = field(default_factory=list)
    outputs: list[Array | list[float]] = field(default_factory=list)
    noise: list[tuple[float, float]] = field(default_factory=list)
    alphas: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def add(
        self,
        t: float,
        alpha: float,
        a: float,
        b: Array | list[float],
        c: float = 0.0,
        p: float = 0.0,
        q: float = 1.0,
        *,
        c_before: float = 0.0,
        again: bool = False,
    ) -> None:
        """c, c_before: weights of the row's own noise and of that of the row before.

        again: a further evaluation of the step before.
        """
        self.t.append(t)
        self.alphas.append(alpha)
        self.coefficients.append((a, p, q))
        self.noise.append((c, c_before))
        self.outputs.append(b)
        before = self.steps[-1] if self.steps else 0
        self.steps.append(before if again else before + 1)

    def table(self, final_alpha: float, initial_noise: float = 1.0) -> StepTable:
        B = np.zeros((len(self.t), MOST_HISTORY))
        for row, b in zip(B, self.outputs, strict=True):
            row[: len(b)] = b
        B = _read(B)
        C = _read(np.array(self.noise, dtype=np.float64).reshape(-1, MOST_NOISE))
        A, p, q = np.array(self.coefficients, dtype=np.float64).reshape(-1, 3).T
        alphas = np.array([*self.alphas, final_alpha])
        steps = np.array(self.steps, dtype=np.int64)
        return StepTable(np.array(self.t), A, B, C, p, q, alphas, steps, initial_noise)


def _read(weights: Array) -> Array:
    """Without the last columns that no row reads, but for the first."""
    return weights[:, : max([1, *(np.flatnonzero(weights.any(axis=0)) + 1)])]


ADAMS_BASHFORTH = (
    np.array([1.0]),
    np.array([3 / 2, -1 / 2]),
    np.array([23 / 12, -16 / 12, 5 / 12]),
    np.array([55 / 24, -59 / 24, 37 / 24, -9 / 24]),
)
"""Weights of past slopes, the newest first, by how many there are; of equal steps."""


def ancestral(grid: Grid) -> tuple[Array, Array]:
    """For each step the noise level to step down to, and that of the fresh noise added then, which
    together are that of the grid (k-diffusion's `get_ancestral_step`, eta 1).
    """
    return ancestral_step(grid.sigmas, grid.sigmas_next)


def ancestral_step(sigma: Array, target: Array) -> tuple[Array, Array]:
    """The same of steps from `sigma` to `target`."""
    up = np.sqrt(target**2 * (sigma**2 - target**2) / sigma**2)
    return np.sqrt(target**2 - up**2), up


def last_alpha(grid: Grid) -> float:
    """Cumulative alpha at which a table ends: 1, a clean latent, for a grid without points."""
    return float(grid.alphas_next[-1]) if len(grid) else 1.0


def noise_alone(grid: Grid) -> float:
    """k-diffusion and diffusers start these samplers from σ·noise, not from unit variance.

    (diffusers does not on a leading grid, which begins below the largest σ.)
    """
    return float(np.sqrt(1 - grid.alphas[0])) if len(grid) and grid.noise_alone else 1.0
