"""A decoded picture as an array of the size that is rendered."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Pixels = NDArray[np.uint8]

PART_PIXELS = 2**20
"""Pixels of a large picture that are converted at a time, so that no third copy is in memory."""

# Each has a range of 0 to 255, or in the case of "1" is converted to it.
_EIGHT_BIT = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")

_UPRIGHT: dict[object, Image.Transpose] = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image, orientation: object) -> Image.Image:
    """The image as it is meant to be seen. orientation: 1 to 8 as EXIF has it; anything else, and
    1, leaves it as it is.
    """
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, Real) else None
    return image if turn is None else image.transpose(turn)


def eight_bit(image: Image.Image, depth: int) -> Image.Image:
    """A loaded image with channels of 0 to 255: 16 bits of grey are divided by 257.

    depth: bits of a channel in its file. Raises `ValueError` for a mode whose range is not known.
    """
    key = image.info.get("transparency")  # a colour, as the file writes it: that one is see-through
    if image.mode.startswith("I"):
        mode = "L" if key is None else "LA"
        return _in_parts(image, mode, lambda part: _from_16_bit(part, key))
    if image.mode not in _EIGHT_BIT:
        raise ValueError(f"its mode {image.mode} is unknown")
    if image.mode == "RGB" and depth == 16 and key is not None:
        image.info["transparency"] = tuple(value >> 8 for value in key)  # as Pillow reads pixels
    elif image.mode == "L" and depth < 8 and isinstance(key, int):
        image.info["transparency"] = key * (255 // (2**depth - 1))
    return image


def fit(image: Image.Image, mode: str, width: int, height: int) -> Pixels:
    """The image without transparency, cropped about its centre to the aspect, resized.

    image: upright and of 8 bits. mode: "RGB" gives (height, width, 3) uint8, "L" (height, width).
    Transparent parts become white; as a mask (mode "L") they become black: kept, not repainted.
    """
    ground = "white" if mode == "RGB" else "black"

    def opaque(part: Image.Image) -> Image.Image:
        part = part.convert("RGBA")
        below = Image.new("RGBA", part.size, ground)
        return Image.alpha_composite(below, part).convert(mode)

    if image.has_transparency_data:
        image = _in_parts(image, mode, opaque)
    elif image.mode != mode:
        image = image.convert(mode)
    # A mask keeps its hard edges; a picture is averaged down.
    method = Image.Resampling.LANCZOS if mode == "RGB" else Image.Resampling.NEAREST
    return np.asarray(ImageOps.fit(image, (width, height), method=method))


def _from_16_bit(part: Image.Image, key: int | None) -> Image.Image:
    values = np.asarray(part).astype(np.int64)
    grey = ((values + 128) // 257).clip(0, 255).astype(np.uint8)
    if key is None:
        return Image.fromarray(grey)
    alpha = np.where(values == key, 0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([grey, alpha]))


def _in_parts(
    image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """A new image of this mode, made of what `convert` makes of some rows at a time."""
    made = Image.new(mode, image.size)
    rows = max(1, PART_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        made.paste(convert(image.crop(box)), box)
    return made
