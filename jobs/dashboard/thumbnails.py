"""Small pictures of images, and what kind of picture a file is."""

from __future__ import annotations

import io

from PIL import Image

from jobs.errors import DamagedError
from jobs.pictures.rules import PictureError, opened

SIDE = 320
"""Pixels of the longer side: a tile is about 200 wide, on screens of up to twice that density."""

QUALITY = 80

MAX_THUMBNAIL_BYTES = 2**20
"""A stored thumbnail has some ten kilobytes."""


def media_type(data: bytes) -> str | None:
    """Media type by the first bytes, whatever the file is called; None if it is no picture of the
    kinds that jobs make.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    return None


def thumbnail(data: bytes, place: str) -> bytes:
    """A WebP of at most `SIDE` pixels a side. place: of the picture, for people.

    Raises `DamagedError` if it is no picture.
    """
    try:
        with opened(data) as image:
            image.draft("RGB", (SIDE, SIDE))  # a JPEG is decoded at a fraction of its size
            small = image.convert("RGB")
            small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
            buffer = io.BytesIO()
            small.save(buffer, "WEBP", quality=QUALITY, method=2)
    except PictureError as error:
        raise DamagedError(f"{place} {error}") from None
    return buffer.getvalue()
