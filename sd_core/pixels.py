"""Rendered numbers as pixels: the one place where they are rounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

NOT_FINITE = (
    "the decoded image is not finite; try dtype float32 or bfloat16, or another autoencoder"
)


def to_uint8(images: Tensor) -> Tensor:
    """(…, 3, H, W) float in [-1, 1] to (…, H, W, 3) uint8 in 0 to 255, on the same device.

    Rounded as diffusers does (CompVis truncates); values outside are clipped. What is not a number,
    which in float16 some autoencoders give, becomes any pixel: see `finite`.
    """
    unit = (images.float() / 2 + 0.5).clamp(0.0, 1.0)
    return (unit * 255).round().to(torch.uint8).movedim(-3, -1).contiguous()


def finite(images: Tensor) -> Tensor:
    """(B, …) to (B,) bool, on the same device: every number of an image is finite."""
    return images.isfinite().flatten(1).all(dim=1)


def to_pil(pixels: NDArray[np.uint8] | Tensor) -> Image:
    """A picture to show or to save, with the pixels that a job's files have.

    pixels: (H, W, 3) uint8, such as `Rendered.pixels`; or (3, H, W) float in [-1, 1] on any device,
    such as one image of `LatentDiffusion.decode`. Raises `ValueError` for others, and
    `ArithmeticError` for floats that are not finite.
    """
    from PIL import Image  # only here: a renderer needs none

    given = torch.as_tensor(pixels).detach()
    if given.dim() == 3 and given.shape[0] == 3 and given.is_floating_point():
        if not given.isfinite().all():
            raise ArithmeticError(NOT_FINITE)
        given = to_uint8(given)
    if given.dim() != 3 or given.shape[2] != 3 or given.dtype is not torch.uint8:
        raise ValueError(
            f"pixels are {given.dtype} {tuple(given.shape)}; expected uint8 (H, W, 3) or floats "
            "(3, H, W)"
        )
    return Image.fromarray(given.cpu().numpy())
