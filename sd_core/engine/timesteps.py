"""Embedded timesteps of the tables in use, in one tensor on the device.

An evaluation gathers its rows' timesteps from it in one operation. All timesteps of a table are
embedded together, as the rounding of a product may depend on how many there are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

import torch
from torch import Tensor

from sd_core.model.diffusion import LatentDiffusion
from sd_core.sampling.samplers import StepTable

LEAST = 256
KEPT = 2048
"""Timesteps that are kept for later images when room is made; at v1 size about 40 kB each in 16
bits."""


class EmbeddedTimesteps:
    """rows: (capacity, n), of the model's type; empty until the first `add`."""

    def __init__(self, model: LatentDiffusion) -> None:
        self._model = model
        self.rows = torch.empty(0, 0)
        self._begins: OrderedDict[StepTable, int] = OrderedDict()  # least recently used first
        self._end = 0

    def begin(self, table: StepTable) -> int:
        """The row of the first timestep of a table that was added; good until the next `add`."""
        self._begins.move_to_end(table)
        return self._begins[table]

    def add(self, tables: Collection[StepTable]) -> None:
        """Embeds those of the tables that are not there; others may be dropped for them.

        The next `begin` of a table that was dropped raises `KeyError`.
        """
        new = [table for table in dict.fromkeys(tables) if table not in self._begins]
        needed = sum(map(len, new))
        parts = [self._model.embed_timesteps(torch.tensor(t.t, dtype=torch.float32)) for t in new]
        if self._end + needed > len(self.rows):
            self._make_room(needed, tables, parts[0])
        for table, part in zip(new, parts, strict=True):
            self._append(table, part)

    def _append(self, table: StepTable, part: Tensor) -> None:
        self.rows[self._end : self._end + len(part)].copy_(part)
        self._begins[table] = self._end
        self._end += len(part)

    def _make_room(self, needed: int, tables: Collection[StepTable], like: Tensor) -> None:
        """Keeps the tables and, of others, the latest used; twice the room that is needed then."""
        before, begins = self.rows, self._begins
        room = KEPT
        kept: list[StepTable] = []
        for table in reversed(begins):
            room -= len(table)
            if room >= 0 or table in tables:
                kept.append(table)
        size = max(LEAST, 2 * (needed + sum(map(len, kept))))
        self.rows = like.new_zeros(size, like.shape[1])
        self._begins, self._end = OrderedDict(), 0
        for table in reversed(kept):
            begin = begins[table]
            self._append(table, before[begin : begin + len(table)])
