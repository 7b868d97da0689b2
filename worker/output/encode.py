"""Pixels to image files that say how they were made; `jobs.pictures.embedded` reads it again.

The same pixels and record give the same bytes: no time of day is written. Each format holds the
record twice: as the text other tools read (`worker.output.a1111`), and in full as JSON.

    format       A1111 text                 full record
    PNG          tEXt or iTXt `parameters`  iTXt `sdbatch`
    JPEG, WebP   EXIF UserComment           XMP, property `sdbatch:record`
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from jobs.pictures.embedded import RECORD_CHUNK, xmp_of
from jobs.task import DEFAULT_QUALITY
from worker.output.a1111 import a1111_text
from worker.output.png import png_file

THUMBNAIL_SIDE = 320
"""Pixels of a thumbnail's longer side."""

THUMBNAIL_BYTES = 12 * 1024
"""Most that a thumbnail has; one of pure noise has more."""

THUMBNAIL_QUALITIES = (80, 60, 40, 20, 5)
"""Tried in this order until a thumbnail is small enough."""


def encode_image(
    pixels: NDArray[np.uint8],
    record: Mapping[str, Any],
    format: str,
    quality: int = DEFAULT_QUALITY,
) -> bytes:
    """An image file holding `pixels` (H, W, 3) and `record`; format: png, jpeg or webp.

    Raises `ValueError` where the record does not fit: JPEG has room for 64 kB.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}, not uint8 (H, W, 3)")
    # ASCII, so that any prompt survives any tool.
    full = json.dumps(record, separators=(",", ":"))
    if format == "png":
        info = PngInfo()
        info.add_text("parameters", a1111_text(record))  # Pillow takes iTXt where Latin-1 is short
        info.add_itxt(RECORD_CHUNK, full)
        return png_file(pixels, [(kind, data) for kind, data, *_ in info.chunks])
    image = Image.fromarray(np.ascontiguousarray(pixels))
    buffer = io.BytesIO()
    if format in ("jpeg", "webp"):
        exif, xmp = _exif(a1111_text(record)), xmp_of(full)
        if format == "webp":
            image.save(buffer, "WEBP", quality=quality, exif=exif, xmp=xmp)
        else:
            _save_jpeg(image, buffer, quality, exif, xmp)
    else:
        raise ValueError(f"format {format!r} is unknown; png, jpeg or webp")
    return buffer.getvalue()


def encode_thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    """A WebP of a picture (H, W, 3), as large as `THUMBNAIL_SIDE` has room for. It says nothing of
    how the picture was made.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    size = THUMBNAIL_SIDE, THUMBNAIL_SIDE
    small = ImageOps.contain(image, size, Image.Resampling.LANCZOS)
    data = b""
    for quality in THUMBNAIL_QUALITIES:
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=quality)
        data = buffer.getvalue()
        if len(data) <= THUMBNAIL_BYTES:
            break
    return data


def _save_jpeg(
    image: Image.Image, buffer: io.BytesIO, quality: int, exif: bytes, xmp: bytes
) -> None:
    try:
        # 4:4:4, because halved colour blurs the edges of flat colours and of red on blue.
        image.save(
            buffer, "JPEG", quality=quality, subsampling=0, optimize=True, exif=exif, xmp=xmp
        )
    except ValueError as error:
        if "too long" not in str(error):
            raise
        raise ValueError(
            "the prompts are too long for a JPEG, which has room for 64 kB of metadata; "
            "use format png or webp"
        ) from error


def _exif(comment: str) -> bytes:
    """An EXIF block whose one entry is a UserComment, in UTF-16 as the EXIF standard has it.

    Written by hand, since the entry's type must be UNDEFINED for other readers and Pillow chooses
    another one. Big-endian TIFF: header, main directory, EXIF directory, value.
    """
    user_comment, exif_directory, long, undefined = 0x9286, 0x8769, 4, 7
    value = b"UNICODE\0" + comment.encode("utf-16-be")
    return b"Exif\0\0" + b"".join(
        [
            struct.pack(">2sHL", b"MM", 42, 8),
            struct.pack(">HHHLLL", 1, exif_directory, long, 1, 26, 0),
            struct.pack(">HHHLLL", 1, user_comment, undefined, len(value), 44, 0),
            value,
        ]
    )
