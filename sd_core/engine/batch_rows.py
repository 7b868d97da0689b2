"""How many rows a batch has: by device and latent shape, and fewer while memory is short.

The bits of an image's evaluation may depend on the row count, for kernels may be chosen or divide
their work by it. So exact images run at one fixed count; and at smaller ones as soon as these were
seen to give the same bits on this machine.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from sd_core.spec import Shape

# Latent pixels a batch holds, and its most rows, by device. A CPU gains nothing from more once its
# cores are busy: two rows of a 512×512 image, or many of a small one.
BATCH_LATENT_PIXELS = {"cpu": 2 * 64 * 64, "cuda": 16 * 64 * 64}
MOST_ROWS = 16

# Row counts besides the fixed one. An accelerator wants few static shapes; on
# a CPU every row of padding is arithmetic for nothing, and no count costs more than another.
FAST_ROWS = {"cpu": tuple(range(1, MOST_ROWS + 1)), "cuda": (1, 2, 4, 8, 12, 16)}

# Images decoded together: always so many where they are exact, padded; up to so many otherwise. On
# a CPU several take as long as one after the other. Large images are decoded in less company, for
# each takes gigabytes: four at 512×512 are one at 1024×1024.
DECODED_TOGETHER = {"cpu": 1, "cuda": 4}
DECODED_LATENT_PIXELS = 4 * 64 * 64

CHECKS = 2
"""Evaluations in which a row count has to give the bits of the fixed one before it serves, too."""

RECOVER_AFTER = 64
"""Evaluations without trouble after which a batch that was cut down may have twice the rows."""


def batch_rows(device: str, shape: Shape) -> int:
    """Row count of batches of this latent shape (h, w): fixed, so that images are reproducible."""
    fitting = BATCH_LATENT_PIXELS[device] // (shape[0] * shape[1])
    return max(2, min(MOST_ROWS, fitting // 2 * 2))


@dataclass
class _Limit:
    rows: int
    good: int = 0  # evaluations since it last changed
    patience: int = RECOVER_AFTER  # doubled each time that more rows did not fit


class Rows:
    """Row counts of one engine.

    fixed: gives the row count of exact batches of a shape. device: cpu or cuda. static: no other
    count for any batch: each would have to be compiled, or may have other bits now and then.
    """

    def __init__(self, device: str, fixed: Callable[[Shape], int], *, static: bool = False) -> None:
        self._device = device
        self._fixed = fixed
        self._static = static
        self._limits: dict[Shape, _Limit] = {}
        self._same: Counter[tuple[Shape, int]] = Counter()  # evaluations that gave the same bits
        self._other: set[tuple[Shape, int]] = set()  # counts that gave other ones

    def of(self, shape: Shape) -> int:
        """The fixed row count of a shape: what a batch holds at most."""
        return self._fixed(shape)

    def padded(self, shape: Shape, used: int, *, exact: bool) -> int:
        """Rows of a batch in which `used` hold an image. Where these are more than the fixed count,
        it is evaluated in parts of that, and one of what is left.
        """
        whole, rest = self._parts(shape, used)
        if not rest:
            return whole
        rows = self._fitting(shape, rest)
        return whole + (rows if not exact or self.gives_exact(shape, rows) else self.of(shape))

    def _parts(self, shape: Shape, used: int) -> tuple[int, int]:
        """Rows in parts of the fixed count, and those that are left."""
        rest = used % self.of(shape)
        return used - rest, rest

    def _fitting(self, shape: Shape, used: int) -> int:
        most, counts = self.of(shape), FAST_ROWS[self._device]
        place = bisect.bisect_left(counts, used)
        return min(most, counts[place]) if place < len(counts) and not self._static else most

    def gives_exact(self, shape: Shape, rows: int) -> bool:
        """True if so many rows give the bits of the fixed count."""
        return rows == self.of(shape) or self._same[shape, rows] >= CHECKS

    def unchecked(self, shape: Shape, used: int) -> int | None:
        """A count that would do for `used` rows, or for what is left of them beside parts of the
        fixed one, and is still to be compared with that.
        """
        rows = self._fitting(shape, self._parts(shape, used)[1] or self.of(shape))
        known = self.gives_exact(shape, rows) or (shape, rows) in self._other
        return None if known else rows

    def checked(self, shape: Shape, rows: int, *, same: bool) -> None:
        """An evaluation of so many rows gave, or did not give, the bits of the fixed count."""
        if same:
            self._same[shape, rows] += 1
        else:
            self._same[shape, rows] = 0
            self._other.add((shape, rows))

    def decoded(self, shape: Shape) -> int:
        """Images of this latent shape decoded together, at most."""
        fitting = DECODED_LATENT_PIXELS // (shape[0] * shape[1])
        return max(1, min(DECODED_TOGETHER[self._device], fitting))

    def padded_decode(self, shape: Shape, used: int, *, exact: bool) -> int:
        """Images of a decode of which `used` are wanted."""
        return self.decoded(shape) if exact or self._static else used

    # What memory allows

    def limit(self, shape: Shape, rows: int) -> int:
        """Rows to evaluate in one call, of a batch of so many."""
        known = self._limits.get(shape)
        return min(rows, self.of(shape) if known is None else known.rows)

    def ran_out(self, shape: Shape, rows: int) -> bool:
        """So many rows did not fit; False if there is nothing smaller to try."""
        if rows <= 1:
            return False
        known = self._limits.get(shape)
        patience = RECOVER_AFTER if known is None else 2 * known.patience
        self._limits[shape] = _Limit(rows // 2, patience=patience)
        return True

    def went_well(self, shape: Shape) -> None:
        """An evaluation of this shape was made; after enough of them, more rows are tried."""
        known = self._limits.get(shape)
        if known is None:
            return
        known.good += 1
        if known.good >= known.patience:
            known.good, known.rows = 0, min(2 * known.rows, self.of(shape))
