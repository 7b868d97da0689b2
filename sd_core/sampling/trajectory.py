"""An image in flight.

All that an image needs between two model evaluations is here: latent, the last few model outputs,
its table and position, its random generator. So images of different samplers, step counts,
guidance and start rows advance together (`sd_core.sampling.slots`), and join or leave between any
two evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sd_core.sampling.guidance import Guide
from sd_core.sampling.noise import Generator
from sd_core.sampling.step_table import StepTable
from sd_core.setting_texts import Projection


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

    latents: (4, h, w) float32; a view of the slot while the image is in one.
    past: (MOST_HISTORY - 1, 4, h, w) float32, past u of the table, newest first, zeros before the
        first; a view as latents are. None before the first evaluation.
    noise_before: (4, h, w) float32, fresh noise of the last row, where the next one reads it; a
        view too.
    difference: (4, h, w), that of the last projected guidance (`sd_core.sampling.guidance.Guide`),
        where the projection has momentum; a view too. None before the first evaluation.
    guided: (N,) whether each row of the table is within the guided part; None for all.
    projection: of the guidance; None for none.
    """

    table: StepTable
    latents: Tensor
    generator: Generator
    guidance: float = 7.5
    inpainting: Inpainting | None = None
    position: int = 0
    past: Tensor | None = None
    noise_before: Tensor | None = None
    difference: Tensor | None = None
    guided: NDArray[np.bool_] | None = None
    projection: Projection | None = None

    @property
    def done(self) -> bool:
        return self.position >= len(self.table)

    @property
    def outputs(self) -> list[Tensor]:
        """Past outputs that later rows may read, newest first, each like latents."""
        if self.past is None:
            return []
        return list(self.past[: min(self.position, self.table.history - 1)])

    @property
    def guided_now(self) -> bool:
        """True if the next evaluation is within the guided part."""
        return self.guided is None or bool(self.guided[self.position])

    @property
    def guidance_now(self) -> float:
        """Guidance of the next evaluation; 1 is none."""
        return self.guidance if self.guided_now else 1.0

    def guide(self, rescale: float, thresholding: float) -> Guide | None:
        """Changes to the guided output of the next evaluation; None for none.

        rescale: only where there is guidance, as projection.
        """
        share, projection = (rescale, self.projection) if self.guided_now else (0.0, None)
        if not share and not thresholding and projection is None:
            return None
        # Weights of every row are others, of which a captured evaluation knows nothing.
        by_row = thresholding or projection is not None
        clean = self.table.clean(self.position) if by_row else None
        # One that only projection reads, so that graphs of other guides serve any scale.
        guidance = 1.0 if projection is None else self.guidance
        return Guide(share, thresholding, projection, guidance, clean)

    @property
    def has_momentum(self) -> bool:
        """True where the last difference of guidance is read again."""
        return self.projection is not None and bool(self.projection.momentum)

    @property
    def timestep(self) -> float:
        """Timestep that the next evaluation tells the model."""
        return float(self.table.t[self.position])


def from_noise(table: StepTable, noise: Tensor) -> Tensor:
    """Latents (4, h, w) to start from without an init image."""
    return noise * table.initial_noise


def from_latents(table: StepTable, clean: Tensor, noise: Tensor) -> Tensor:
    """Latents (4, h, w) of an init image, noised to where the table begins."""
    alpha = float(table.alphas[0])
    return alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
