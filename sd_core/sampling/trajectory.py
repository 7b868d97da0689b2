"""An image in flight, and the one update that moves a whole batch of them.

All that an image needs between two model evaluations is here: latent, the last few model outputs,
its table and position, its random generator. So images of different samplers, step counts,
guidance and start rows advance together, and join or leave between any two evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sd_core.sampling.noise import draw_noise
from sd_core.sampling.samplers import StepTable


@dataclass
class Inpainting:
    """Latent that an inpainted trajectory returns to, outside its mask.

    known: (4, h, w) float32 latent of the init image.
    noise: (4, h, w), the noise it entered with.
    mask: (1, h, w) float32, 1 where the picture is repainted, 0 where it is kept.
    """

    known: Tensor
    noise: Tensor
    mask: Tensor


@dataclass
class Trajectory:
    """State of one image between two model evaluations.

    latents: (4, h, w) float32. outputs: past u of the table, newest first, each like latents.
    """

    table: StepTable
    latents: Tensor
    generator: torch.Generator
    guidance: float = 7.5
    inpainting: Inpainting | None = None
    position: int = 0
    outputs: list[Tensor] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.position >= len(self.table)

    @property
    def timestep(self) -> float:
        """Timestep that the next evaluation tells the model."""
        return float(self.table.t[self.position])


def from_noise(table: StepTable, generator: torch.Generator, shape: tuple[int, int]) -> Tensor:
    """Latents (4, h, w) to start from without an init image. shape: (h, w)."""
    return draw_noise(generator, (4, *shape)) * table.initial_noise


def from_latents(table: StepTable, clean: Tensor, noise: Tensor) -> Tensor:
    """Latents (4, h, w) of an init image, noised to where the table begins."""
    alpha = float(table.alphas[0])
    return alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise


def guide(uncond: Tensor, cond: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): away from the unconditional prediction."""
    return uncond + guidance * (cond - uncond)


def advance(batch: Sequence[Trajectory], eps: Tensor) -> None:
    """Moves every trajectory over one row of its own table, in place; none of them if it raises.

    eps: (len(batch), 4, h, w) float32 guided model outputs, one a trajectory, in order. All
    trajectories are unfinished and of one latent shape.
    """
    rows = [(t.table, t.position) for t in batch]
    depth = max(table.history for table, _ in rows)

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=eps.device)[:, None, None, None]

    x = torch.stack([t.latents for t in batch])
    u = (
        column([table.p[i] for table, i in rows]) * x
        + column([table.q[i] for table, i in rows]) * eps
    )
    moved = column([table.A[i] for table, i in rows]) * x
    nothing = torch.zeros_like(u[0])
    for k in range(depth):
        past = u if k == 0 else torch.stack([_nth(t.outputs, k - 1, nothing) for t in batch])
        weights = [table.B[i, k] if k < table.history else 0.0 for table, i in rows]
        moved = moved + column(weights) * past
    drawn = [
        (t.generator, t.generator.get_state())
        for t, (table, i) in zip(batch, rows, strict=True)
        if table.C[i]
    ]
    try:
        latents = [_end_row(t, x) for t, x in zip(batch, moved, strict=True)]
    except BaseException:
        for generator, state in drawn:  # or the next try would draw other noise
            generator.set_state(state)
        raise
    for n, trajectory in enumerate(batch):
        trajectory.latents = latents[n]
        trajectory.outputs = [u[n], *trajectory.outputs][: trajectory.table.history - 1]
        trajectory.position += 1


def _end_row(trajectory: Trajectory, latents: Tensor) -> Tensor:
    """The latents that a row ends with: fresh noise added, and what is known put back."""
    table, row = trajectory.table, trajectory.position
    if table.C[row]:
        noise = draw_noise(trajectory.generator, tuple(latents.shape))
        latents = latents + float(table.C[row]) * noise.to(latents.device)
    if trajectory.inpainting is not None:
        latents = _keep_known(trajectory.inpainting, latents, table, row)
    return latents


def _nth(outputs: list[Tensor], n: int, otherwise: Tensor) -> Tensor:
    return outputs[n] if n < len(outputs) else otherwise


def _keep_known(inpainting: Inpainting, latents: Tensor, table: StepTable, row: int) -> Tensor:
    """Outside the mask, the init image at the noise level the row has led to; clean at the end.

    The masked sampling of Lugmayr et al. 2022 (RePaint) without its resampling.
    """
    last = row + 1 == len(table)
    alpha = 1.0 if last else float(table.alphas[row + 1])
    known = alpha**0.5 * inpainting.known + (1 - alpha) ** 0.5 * inpainting.noise
    return inpainting.mask * latents + (1 - inpainting.mask) * known
