"""What is asked of the engine and what it answers: the values that cross its edge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sd_core.spec import Sampling

Pixels = NDArray[np.uint8]
OnStep = Callable[[int, int], None]


class EngineClosedError(RuntimeError):
    """The engine takes no more requests, or stopped before this one was finished."""


class Suspended(Exception):  # noqa: N818 - a stop that was asked for is no error
    """How an image that was suspended ends. state: what `Engine.submit` continues it from."""

    def __init__(self, state: bytes) -> None:
        super().__init__("suspended between two steps")
        self.state = state


@dataclass(frozen=True)
class Request:
    """One image to render.

    init_image: (H, W, 3) uint8 of exactly the sampling's size, for img2img.
    mask: (H, W) uint8 of that size, with an init image: white is painted anew, the rest is kept
        to the pixel.
    priority: images of higher priority take the device between two steps; any whole number.
    exact: run at one fixed row count, so that the bytes depend on nothing else in the batch. False
        takes whatever row count is quickest.
    """

    prompt: str
    sampling: Sampling
    negative: str = ""
    init_image: Pixels | None = None
    mask: Pixels | None = None
    priority: int = 0
    exact: bool = True

    def __post_init__(self) -> None:
        size = (self.sampling.height, self.sampling.width)
        if self.init_image is not None and self.init_image.shape != (*size, 3):
            raise ValueError(f"init image is {self.init_image.shape}, not {(*size, 3)}")
        if self.mask is not None and self.init_image is None:
            raise ValueError("a mask goes with an init image")
        if self.mask is not None and self.mask.shape != size:
            raise ValueError(f"mask is {self.mask.shape}, not {size}")

    @property
    def rows(self) -> int:
        """Of the UNet's batch: one with guidance 1.0, else two."""
        return 1 if self.sampling.guidance == 1.0 else 2

    def digest(self) -> str:
        """sha256 in hex over all that decides the picture, besides the model."""
        settings = [self.prompt, self.negative, asdict(self.sampling)]
        total = hashlib.sha256(json.dumps(settings).encode())
        for pixels in (self.init_image, self.mask):
            part = b"" if pixels is None else np.ascontiguousarray(pixels).tobytes()
            total.update(hashlib.sha256(part).digest())
        return total.hexdigest()


@dataclass(frozen=True)
class Rendered:
    """A finished image: pixels (3, H, W) float32 in [-1, 1] on the CPU.

    evaluations: of the UNet. seconds: from admission to the last pixel, here; shared with
    neighbours. exact: every evaluation ran at the fixed row count of its shape.
    """

    pixels: Tensor
    evaluations: int
    seconds: float
    exact: bool = True


@dataclass(frozen=True)
class Batch:
    """One evaluation of the model that was made.

    rows_used: rows that held an image. rows: all of them, padding included. seconds: as the
    engine's thread saw it; a device that works in the background may still be at it.
    """

    rows_used: int
    rows: int
    seconds: float


OnBatch = Callable[[Batch], None]
