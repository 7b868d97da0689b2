"""Fonts of sheets: one with letters of many scripts, where there is one."""

from __future__ import annotations

from functools import cache

from PIL import ImageFont

_FONTS = ("NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial.ttf")
"""Files that have letters of more scripts than Pillow's own font; the first that is there."""


@cache
def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font of so many pixels."""
    for name in _FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
