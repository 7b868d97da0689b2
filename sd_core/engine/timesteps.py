"""Embedded timesteps of the tables in use, in one tensor on the device.

An evaluation gathers its rows' timesteps from it in one operation. All timesteps of a table are
embedded together, as the rounding of a product may depend on how many there are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from sd_core.engine.adapters import LoraSet
from sd_core.model.adapters import adapted
from sd_core.model.diffusion import LatentDiffusion
from sd_core.sampling.step_table import StepTable

LEAST = 256
KEPT = 2048
"""Timesteps that are kept for later images when room is made; at v1 size about 40 kB each in 16
bits."""


class Times(NamedTuple):
    """The timesteps of a table. loras: that have a part in what they become. guidance: that the
    model is told with them; 1 for one that is told none.
    """

    table: StepTable
    loras: LoraSet | None = None
    guidance: float = 1.0

    @classmethod
    def of(cls, table: StepTable, loras: LoraSet | None, guidance: float = 1.0) -> Times:
        """loras: of the image."""
        return cls(table, loras if loras is not None and loras.times else None, guidance)

    @property
    def key(self) -> _Key:
        return self.table, None if self.loras is None else self.loras.key, self.guidance


_Key = tuple[StepTable, Hashable, float]


class EmbeddedTimesteps:
    """rows: (capacity, n), of the model's type; empty until the first `add`."""

    def __init__(self, model: LatentDiffusion) -> None:
        self._model = model
        self.rows = torch.empty(0, 0)
        self._begins: OrderedDict[_Key, int] = OrderedDict()  # least recently used first
        self._end = 0

    def begin(self, times: Times) -> int:
        """The row of the first of the timesteps, which were added; good until the next `add`."""
        self._begins.move_to_end(times.key)
        return self._begins[times.key]

    def add(self, wanted: Collection[Times]) -> None:
        """Embeds those that are not there; others may be dropped for them.

        The next `begin` of what was dropped raises `KeyError`.
        """
        keys = {times.key: times for times in wanted}
        new = [times for key, times in keys.items() if key not in self._begins]
        needed = sum(len(times.table) for times in new)
        parts = [self._embedded(times) for times in new]
        if self._end + needed > len(self.rows):
            self._make_room(needed, keys, parts[0])
        for times, part in zip(new, parts, strict=True):
            self._append(times.key, part)

    def _embedded(self, times: Times) -> Tensor:
        layers = {} if times.loras is None else times.loras.times
        with adapted(self._model.unet.adapters, [(slice(None), layers)]):
            timesteps = torch.tensor(times.table.t, dtype=torch.float32)
            return self._model.embed_timesteps(timesteps, times.guidance)

    def _append(self, key: _Key, part: Tensor) -> None:
        self.rows[self._end : self._end + len(part)].copy_(part)
        self._begins[key] = self._end
        self._end += len(part)

    def _make_room(self, needed: int, wanted: Collection[_Key], like: Tensor) -> None:
        """Keeps what is wanted and the latest used of others, in twice the room that these take."""
        before, begins = self.rows, self._begins
        room = KEPT
        kept: list[_Key] = []
        for key in reversed(begins):
            room -= len(key[0])
            if room >= 0 or key in wanted:
                kept.append(key)
        size = max(LEAST, 2 * (needed + sum(len(key[0]) for key in kept)))
        self.rows = like.new_zeros(size, like.shape[1])
        self._begins, self._end = OrderedDict(), 0
        for key in reversed(kept):
            begin = begins[key]
            self._append(key, before[begin : begin + len(key[0])])
