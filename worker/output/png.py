"""PNG files of 8-bit RGB (ISO/IEC 15948), filtered and compressed as it suits the picture.

What a decoder draws has a little grain: the neighbours predict it, each row by the better of two
filters, and in the rest there is nothing to find but runs. In drawings and skies as smooth as no
decoder draws them, rows repeat: each is predicted by the one above, and a search pays. A few rows
tell which it is. Pillow chooses filters the first way always, and a search finds little then.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

CHANNELS = 3
SAMPLE_ROWS = 16
STRIP_ROWS = 32  # filtered at once, so that what they need stays in a core's cache
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _leftwards(rows: Bytes) -> Bytes:
    """The pixel on the left of each; zeros where there is none."""
    left = np.zeros_like(rows)
    left[:, CHANNELS:] = rows[:, :-CHANNELS]
    return left


def _less_above(rows: Bytes) -> Bytes:
    """Rest of each row but the first when the row above it is taken off: filter 2."""
    return rows[1:] - rows[:-1]


def _less_mean(rows: Bytes) -> Bytes:
    """The same for the mean of left and above, rounded down: filter 3."""
    above, left = rows[:-1], _leftwards(rows[1:])
    return rows[1:] - ((above & left) + ((above ^ left) >> 1))  # the sum would not fit into a byte


def _less_paeth(rows: Bytes) -> Bytes:
    """The same for left, above or their corner, whichever is nearest to left + above - corner:
    filter 4 (Paeth 1991), without leaving bytes.
    """
    above, left, corner = rows[:-1], _leftwards(rows[1:]), _leftwards(rows[:-1])
    of_left, of_above = _distance(above, corner), _distance(left, corner)
    # Where both steps go one way, the corner is further off than either.
    one_way = (above >= corner) == (left >= corner)
    of_corner = np.where(one_way, np.uint8(255), _distance(of_left, of_above))
    nearest = np.where(of_above <= of_corner, above, corner)
    nearest = np.where((of_left <= of_above) & (of_left <= of_corner), left, nearest)
    return rows[1:] - nearest


def _distance(one: Bytes, other: Bytes) -> Bytes:
    return np.maximum(one, other) - np.minimum(one, other)


_FILTERS = {2: _less_above, 3: _less_mean, 4: _less_paeth}


@dataclass(frozen=True)
class _Way:
    """filters: numbers of the format's. level, strategy: zlib's."""

    filters: tuple[int, ...]
    level: int
    strategy: int

    def compress(self, rows: Bytes) -> bytes:
        """The data of rows (H + 1, W * 3) but the first, which is what lies above them."""
        deflate = zlib.compressobj(self.level, strategy=self.strategy)
        strips = (rows[at : at + STRIP_ROWS + 1] for at in range(0, len(rows) - 1, STRIP_ROWS))
        return b"".join(
            [*(deflate.compress(self._filter(strip)) for strip in strips), deflate.flush()]
        )

    def _filter(self, rows: Bytes) -> memoryview:
        """Filter each row by the one of several filters that leaves the least, in sum."""
        left = np.stack([_FILTERS[number](rows) for number in self.filters])
        sums = np.abs(left.view(np.int8)).view(np.uint8).sum(axis=2, dtype=np.uint32)
        best = sums.argmin(axis=0)
        numbers = np.array(self.filters, dtype=np.uint8)[best, None]
        return np.hstack([numbers, left[best, np.arange(len(best))]]).data


_WAYS = (_Way((4, 3), 1, zlib.Z_RLE), _Way((2,), 4, zlib.Z_DEFAULT_STRATEGY))


def png_file(pixels: Bytes, texts: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """pixels: (H, W, 3). texts: type and content of chunks to go in before the pixels.

    The bytes depend on the arguments and on zlib's version alone.
    """
    height, width, _ = pixels.shape
    above = np.zeros((1, width * CHANNELS), dtype=np.uint8)
    rows = np.concatenate([above, pixels.reshape(height, -1)])
    middle = height // 2
    sample = rows[middle : middle + SAMPLE_ROWS + 1]
    way = min(_WAYS, key=lambda way: len(way.compress(sample)))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    chunks = [(b"IHDR", header), *texts, (b"IDAT", way.compress(rows)), (b"IEND", b"")]
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
