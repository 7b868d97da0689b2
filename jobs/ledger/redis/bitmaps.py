"""Images and shards as the Redis ledger keeps them: one bit an image, four bytes a shard.

The first image is the highest bit of the first byte, as Redis counts bits. Numpy is imported where
it is needed: it takes longer than what most commands ask of a ledger.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence


def pack_images(indices: Iterable[int], total: int) -> bytearray:
    """A bitmap of `total` bits with these set; `indices` is read once, one at a time.

    Raises `ValueError` if one of them is not in [0, total).
    """
    bitmap = bytearray((total + 7) // 8)
    for index in indices:
        if not 0 <= index < total:
            raise ValueError(f"image {index} is not of this job, which has {total}")
        bitmap[index >> 3] |= 0x80 >> (index & 7)
    return bitmap


def images_in(bitmap: bytes) -> list[int]:
    """Images that are in a bitmap, in order."""
    import numpy as np

    found: list[int] = np.flatnonzero(np.unpackbits(np.frombuffer(bitmap, np.uint8))).tolist()
    return found


def pack_bounds(shard_ends: Sequence[int]) -> bytes:
    """0 and the ends, 4 bytes each, big-endian."""
    import numpy as np

    return np.array([0, *shard_ends], dtype=">u4").tobytes()


def unpack_bounds(bounds: bytes) -> list[int]:
    """The ends that `pack_bounds` was given."""
    import numpy as np

    ends: list[int] = np.frombuffer(bounds[: len(bounds) // 4 * 4], ">u4")[1:].tolist()
    return ends


def open_shards(done: bytes | bytearray, shard_ends: Sequence[int]) -> bytes:
    """A bitmap of the shards whose images are not all in the bitmap `done`."""
    import numpy as np

    if not shard_ends:
        return b""
    missing = 1 - np.unpackbits(np.frombuffer(done, np.uint8), count=shard_ends[-1])
    starts = [0, *shard_ends[:-1]]
    return np.packbits(np.add.reduceat(missing, starts, dtype=np.int64) > 0).tobytes()


def by_shard(indices: Iterable[int], bounds: bytes) -> Iterator[tuple[int, list[int]]]:
    """The number of each shard that has some of these images, and those. bounds: `pack_bounds`."""
    import numpy as np

    ends = np.frombuffer(bounds, ">u4")[1:]
    ordered = sorted(set(indices))
    shards = np.searchsorted(ends, ordered, side="right").tolist()
    for shard, group in itertools.groupby(zip(shards, ordered, strict=True), lambda pair: pair[0]):
        yield shard, [index for _, index in group]


def missing_images(bitmaps: Iterable[bytes], start: int, stop: int) -> list[int]:
    """Images of [start, stop) that are in none of the bitmaps.

    bitmaps: bytes from start // 8 on; what is missing at their end counts as zeros.
    """
    import numpy as np

    first = start - start % 8
    present = np.zeros(stop - first, np.uint8)
    for bitmap in bitmaps:
        bits = np.unpackbits(np.frombuffer(bitmap, np.uint8))[: stop - first]
        present[: len(bits)] |= bits
    return [int(index) for index in first + np.flatnonzero(present == 0) if index >= start]
