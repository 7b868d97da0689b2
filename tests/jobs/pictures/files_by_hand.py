"""PNG files and EXIF data byte by byte: what no library would write."""

from __future__ import annotations

import struct
import zlib

PNG = b"\x89PNG\r\n\x1a\n"


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))


def png(
    size: tuple[int, int], depth: int, colour: int, rows: bytes, *more: tuple[bytes, bytes]
) -> bytes:
    """colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA. rows: each after a zero byte.
    more: chunks before the pixels, by name.
    """
    header = struct.pack(">LLBBBBB", *size, depth, colour, 0, 0, 0)
    middle = b"".join(chunk(name, data) for name, data in more)
    pixels = chunk(b"IDAT", zlib.compress(rows, 9))
    return PNG + chunk(b"IHDR", header) + middle + pixels + chunk(b"IEND")


Entry = tuple[int, int, int, bytes]
"""tag, type, count, and the four bytes of value or offset. Types: 2 ASCII, 3 SHORT, 4 LONG,
5 RATIONAL."""

ORIENTATION = 0x0112


def short(value: int) -> bytes:
    return struct.pack("<HH", value, 0)


def long(value: int) -> bytes:
    return struct.pack("<L", value)


def tiff(*entries: Entry, tail: bytes = b"") -> bytes:
    """A TIFF directory, little-endian, and what its entries point to: at 14 + 12 a entry."""
    body = b"".join(
        struct.pack("<HHL", tag, kind, count) + value for tag, kind, count, value in entries
    )
    return b"II*\0" + long(8) + struct.pack("<H", len(entries)) + body + long(0) + tail


def with_exif(jpeg: bytes, exif: bytes, most: int = 65_000) -> bytes:
    """The JPEG file with this EXIF data first, in as many segments as that takes."""
    parts = [exif[at : at + most] for at in range(0, len(exif), most)]
    segments = [b"\xff\xe1" + struct.pack(">H", len(p) + 8) + b"Exif\0\0" + p for p in parts]
    return jpeg[:2] + b"".join(segments) + jpeg[2:]
