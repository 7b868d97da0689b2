"""The UNet's batch of one latent shape, kept on the device between evaluations.

An image has one slot (`sd_core.sampling.slots`) and one row for each prompt. What its rows are told
in every evaluation, the projected prompts, is copied once, when it joins. Rows of other kinds, such
as low-rank adapters for each image, would lie here beside the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sd_core.engine.inflight import InflightRequest
from sd_core.engine.timesteps import EmbeddedTimesteps
from sd_core.model.diffusion import LatentDiffusion
from sd_core.model.layers import KeysValues
from sd_core.sampling.slots import Extent, Slots
from sd_core.spec import Shape
from sd_core.transfer import Upload


class InflightBatch:
    """So many rows. An evaluation takes `join`, `stage`, the model on `latents`, `times` and
    `contexts`, `step` and `stepped`; where one of them raises, `withdraw` instead of the rest.

    latents: (rows, 4, h, w) float32. times: (rows, n). contexts: for each attention keys and values
    of all rows.
    """

    def __init__(
        self, model: LatentDiffusion, timesteps: EmbeddedTimesteps, shape: Shape, rows: int
    ) -> None:
        device = model.device
        self._timesteps = timesteps
        self._slots = Slots(rows, shape, device)
        self.latents = torch.zeros_like(self._slots.latents)
        self.times = timesteps.rows.new_zeros(rows, timesteps.rows.shape[1])
        self.contexts: list[KeysValues] = []  # empty until the first image
        self._without = torch.zeros_like(self.latents)
        self._given = torch.zeros_like(self.latents)
        self._slot_of: dict[int, int] = {}  # by number of the image, which is not to be kept alive
        self._rows_of: dict[int, tuple[int, ...]] = {}  # by slot; the last one has the prompt
        self._changed = False  # since the device was last told of it
        self._owners = Upload((rows,), device, torch.int64)  # by row
        self._first = Upload((rows,), device, torch.int64)  # by slot, its rows' outputs
        self._last = Upload((rows,), device, torch.int64)
        self._times_at = Upload((rows,), device, torch.int64)

    def join(self, flights: Sequence[InflightRequest], rows: int) -> None:
        """Makes these images, in the first so many rows, all that is in the batch; the others keep
        their state and leave.

        Raises `ValueError` if one does not fit in; some may have joined then.
        """
        wanted = {flight.arrived: flight for flight in flights}
        for arrived in self._slot_of.keys() - wanted.keys():
            self._leave(arrived)
        for arrived, flight in wanted.items():
            if arrived not in self._slot_of:
                self._enter(flight)
        self._close_gaps(rows)
        if self._changed:
            self._tell()
            self._changed = False

    def leave(self, flight: InflightRequest) -> None:
        """Takes an image out, if it is in; it keeps its state."""
        if flight.arrived in self._slot_of:
            self._leave(flight.arrived)

    def stage(self, flights: Sequence[InflightRequest], rows: int) -> Extent:
        """Brings the next row of every table, and the latents of so many rows, to the device.

        flights: those that joined.
        """
        extent = self._slots.stage()
        at = self._times_at.host.numpy()
        at[:] = 0
        for flight in flights:
            trajectory = flight.flying
            begin = self._timesteps.begin(trajectory.table)
            at[list(self._rows_of[self._slot_of[flight.arrived]])] = begin + trajectory.position
        self._times_at.send()
        used = slice(rows)
        torch.index_select(
            self._timesteps.rows, 0, self._times_at.tensor[used], out=self.times[used]
        )
        torch.index_select(
            self._slots.latents, 0, self._owners.tensor[used], out=self.latents[used]
        )
        return extent

    def withdraw(self) -> None:
        """Undoes `stage`."""
        self._slots.withdraw()

    def step(self, eps: Tensor, extent: Extent) -> None:
        """Moves every image on. eps: (rows, 4, h, w) float32 model outputs."""
        count = slice(extent.slots)
        without, given = self._without[count], self._given[count]
        torch.index_select(eps, 0, self._first.tensor[count], out=without)
        torch.index_select(eps, 0, self._last.tensor[count], out=given)
        self._slots.step(without, given, extent)

    def stepped(self) -> None:
        """Counts the step that every image took."""
        self._slots.stepped()

    def _enter(self, flight: InflightRequest) -> None:
        slot = self._free_slot()
        taken = {row for rows in self._rows_of.values() for row in rows}
        free = [row for row in range(len(self.latents)) if row not in taken]
        rows = tuple(free[: flight.rows])
        self._slots.put(slot, flight.flying)
        for row, context in zip(rows, flight.contexts, strict=True):
            self._write_context(row, context)
        self._slot_of[flight.arrived] = slot
        self._rows_of[slot] = rows
        self._changed = True

    def _leave(self, arrived: int) -> None:
        slot = self._slot_of.pop(arrived)
        del self._rows_of[slot]
        self._slots.take(slot)
        self._changed = True

    def _free_slot(self) -> int:
        return next(slot for slot in range(len(self.latents) + 1) if slot not in self._rows_of)

    def _close_gaps(self, rows: int) -> None:
        """Moves what lies beyond the first so many rows into those that are free."""
        taken = {row for own in self._rows_of.values() for row in own}
        beyond = {row for row in taken if row >= rows}
        if not beyond:
            return
        free = iter([row for row in range(rows) if row not in taken])
        moves = {row: next(free) for row in sorted(beyond)}
        for source, target in moves.items():
            self._write_context(
                target, [(keys[source], values[source]) for keys, values in self.contexts]
            )
        self._rows_of = {
            slot: tuple(moves.get(row, row) for row in own) for slot, own in self._rows_of.items()
        }
        self._changed = True

    def _write_context(self, row: int, context: Sequence[KeysValues]) -> None:
        if not self.contexts:
            rows = len(self.latents)
            self.contexts = [
                (keys.new_zeros(rows, *keys.shape), values.new_zeros(rows, *values.shape))
                for keys, values in context
            ]
        for (all_keys, all_values), (keys, values) in zip(self.contexts, context, strict=True):
            all_keys[row].copy_(keys)
            all_values[row].copy_(values)

    def _tell(self) -> None:
        """Tells the device whose the rows are. A free one has the zeros of a free slot."""
        owners, first, last = (u.host.numpy() for u in (self._owners, self._first, self._last))
        # There is one where a row is free, for an image has at least a row.
        owners[:] = min(self._free_slot(), len(owners) - 1)
        first[:] = last[:] = 0
        for slot, rows in self._rows_of.items():
            owners[list(rows)] = slot
            first[slot], last[slot] = rows[0], rows[-1]
        for upload in (self._owners, self._first, self._last):
            upload.send()
