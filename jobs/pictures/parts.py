"""The parts of a PNG or JPEG file, walked before it is opened: what an image library is in for.

Libraries go through them one by one, and through a JPEG's passes over all its pixels. A small file
can hold so many that this takes hours, or gigabytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"

MOST_PARTS = 50_000
"""Chunks or segments of a file; of the largest pictures, some thousands."""

MOST_BETWEEN_BYTES = 2**16
"""Most bytes between the segments of a JPEG, before its pixels."""

_EOI, _SOS, _APP1, _APP2 = 0xD9, 0xDA, 0xE1, 0xE2
_EXIF, _MPF = b"Exif\0\0", b"MPF\0"

# Anything but stuffing (00), fill bytes (ff), and restarts within a pass (d0 to d7).
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")


@dataclass(frozen=True)
class Survey:
    """passes: over the pixels; one, or about ten where a JPEG is progressive. directory_bytes:
    most that reading its EXIF data and its index of pictures takes, as far as that is done while
    the file is opened.
    """

    passes: int = 1
    directory_bytes: int = 0


def survey(data: bytes) -> Survey:
    """Raises `ValueError` for a PNG or JPEG file with too many parts; other formats have few."""
    if data.startswith(PNG):
        _check_chunks(data)
    elif data.startswith(JPEG):
        return _survey_jpeg(data)
    return Survey()


def directory_bytes(tiff: bytes) -> int:
    """Most bytes that reading a TIFF directory, such as EXIF data, takes: each of its entries may
    point to all of it.
    """
    order = "<" if tiff.startswith(b"II") else ">"
    try:
        (offset,) = struct.unpack_from(f"{order}L", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, offset)
    except struct.error:  # too short to have one
        return 0
    return entries * len(tiff)


def _check_chunks(png: bytes) -> None:
    at = len(PNG)
    for _ in range(MOST_PARTS):
        if at >= len(png):
            return
        at += 12 + int.from_bytes(png[at : at + 4], "big")  # length, name and checksum
    raise ValueError(f"it has more than {MOST_PARTS:,} chunks")


def _survey_jpeg(data: bytes) -> Survey:
    passes, exif, directories = 0, b"", 0
    for marker, payload in _segments(data):
        if marker == _SOS:
            passes += 1
        elif marker == _APP1 and payload.startswith(_EXIF):
            exif += payload.removeprefix(_EXIF)  # goes on in the next such segment
        elif marker == _APP2 and payload.startswith(_MPF):
            directories = max(directories, directory_bytes(payload.removeprefix(_MPF)))
    return Survey(passes, directories + directory_bytes(exif))


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers with what belongs to them, up to the picture's end or the file's."""
    at, between, begun = len(JPEG), 0, False
    for _ in range(MOST_PARTS):
        found = _MARKER.search(data, at)
        if not begun:
            between += (len(data) if found is None else found.start()) - at
            if between > MOST_BETWEEN_BYTES:
                raise ValueError(f"more than {MOST_BETWEEN_BYTES:,} bytes lie between its parts")
        if found is None or found[1][0] == _EOI:
            return
        marker, at = found[1][0], found.end()
        begun = begun or marker == _SOS
        length = max(2, int.from_bytes(data[at : at + 2], "big"))
        yield marker, data[at + 2 : at + length]
        at += length
    raise ValueError(f"it has more than {MOST_PARTS:,} segments")
