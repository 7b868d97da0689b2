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

KEPT = 4096
"""Timesteps that are kept for later images; at v1 size about 40 kB each in 16 bits."""


class EmbeddedTimesteps:
    """rows: (timesteps, n), of the model's type; empty until the first `add`."""

    def __init__(self, model: LatentDiffusion) -> None:
        self._model = model
        self.rows = torch.empty(0)
        self._begins: OrderedDict[StepTable, int] = OrderedDict()  # least recently used first

    def begin(self, table: StepTable) -> int:
        """The row of the first timestep of a table that was added; good until the next `add`."""
        self._begins.move_to_end(table)
        return self._begins[table]

    def add(self, tables: Collection[StepTable]) -> None:
        """Embeds those of the tables that are not there; others may be dropped for them.

        The next `begin` of a table that was dropped raises `KeyError`.
        """
        new = [table for table in dict.fromkeys(tables) if table not in self._begins]
        if not new:
            return
        room = KEPT - sum(map(len, new))
        kept: list[StepTable] = []
        for table in reversed(self._begins):
            room -= len(table)
            if room >= 0 or table in tables:
                kept.append(table)
        parts = [self._part(table) for table in kept]
        parts += [self._model.embed_timesteps(torch.tensor(t.t, dtype=torch.float32)) for t in new]
        self.rows = torch.cat(parts)
        self._begins = OrderedDict()
        begin = 0
        for table, part in zip([*kept, *new], parts, strict=True):
            self._begins[table] = begin
            begin += len(part)
        for table in reversed(kept):
            self._begins.move_to_end(table)
        for table in new:
            self._begins.move_to_end(table)

    def _part(self, table: StepTable) -> Tensor:
        begin = self._begins[table]
        return self.rows[begin : begin + len(table)]
