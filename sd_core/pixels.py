"""Rendered numbers as pixels: the one place where they are rounded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


def to_uint8(images: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """(…, 3, H, W) float in [-1, 1] to (…, H, W, 3) uint8 in 0 to 255.

    Rounded as diffusers does (CompVis truncates); values outside are clipped. Raises
    `ArithmeticError` where a pixel is not a number, which in float16 happens to some autoencoders.
    """
    if not np.isfinite(images).all():
        raise ArithmeticError(
            "the decoded image is not finite; try dtype float32 or bfloat16, or another autoencoder"
        )
    unit = np.clip(images.astype(np.float32) / 2 + 0.5, 0.0, 1.0)
    return np.ascontiguousarray(np.moveaxis((unit * 255).round().astype(np.uint8), -3, -1))


def to_pil(pixels: Tensor) -> Image:
    """A picture to show or to save, with the pixels that a job's files have.

    pixels: (3, H, W) float in [-1, 1], on any device, such as `Rendered.pixels`. Raises
    `ValueError` for another shape, and like `to_uint8`.
    """
    from PIL import Image  # only here: a renderer needs none

    if pixels.dim() != 3 or pixels.shape[0] != 3 or not pixels.is_floating_point():
        raise ValueError(
            f"pixels are {pixels.dtype} {tuple(pixels.shape)}; expected floats (3, H, W)"
        )
    return Image.fromarray(to_uint8(pixels.detach().float().cpu().numpy()))
