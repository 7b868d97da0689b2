"""The UNet's batch of one latent shape, kept on the device between evaluations.

An image has one slot (`sd_core.sampling.slots`) and rows by its `RowRoles`. What its rows are
told, the projected prompts, is copied when it joins, and where its prompt changes. Adapters are
read where they are.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.engine.adapters import Layers, LoraSet
from sd_core.engine.inflight import InflightRequest
from sd_core.engine.prompts import TextContext
from sd_core.engine.row_roles import RowRoles
from sd_core.engine.timesteps import EmbeddedTimesteps
from sd_core.model.beside import Change
from sd_core.model.diffusion import LatentDiffusion
from sd_core.model.layers import (
    Context,
    KeysValues,
    LongContext,
    LongRow,
    PlacedContext,
    attend_longer,
)
from sd_core.model.places import freeu_changes, identity
from sd_core.sampling.guidance import Guide
from sd_core.sampling.slots import Extent, Slots
from sd_core.setting_texts import FreeU
from sd_core.spec import Shape
from sd_core.transfer import Upload


@dataclass
class _LongBuffer:
    """Keys and values of a row with several chunks, for each attention.

    number: a number that no other has.
    """

    number: int
    chunks: int
    contexts: list[KeysValues]


class InflightBatch:
    """So many rows. An evaluation takes `join`, `stage`, the model on `latents`, `times` and
    `contexts`, `step` and `stepped`; where one of them raises, `withdraw` instead of the rest.

    latents: (rows, 4, h, w) float32. times: (rows, n).
    """

    def __init__(
        self, model: LatentDiffusion, timesteps: EmbeddedTimesteps, shape: Shape, rows: int
    ) -> None:
        device = model.device
        self._timesteps = timesteps
        self._slots = Slots(rows, shape, device)
        self.latents = torch.zeros_like(self._slots.latents)
        self.times = timesteps.rows.new_zeros(rows, timesteps.rows.shape[1])
        self._contexts: list[KeysValues] = []  # of first chunks; empty until the first image
        self._longer: dict[int, _LongBuffer] = {}  # by row, also of rows that are free
        self._told: dict[int, TextContext] = {}  # by row
        self._buffers = 0
        self._without = torch.zeros_like(self.latents)
        self._given = torch.zeros_like(self.latents)
        self._slot_of: dict[int, int] = {}  # by number of the image, which is not to be kept alive
        self._rows_of: dict[int, tuple[int, ...]] = {}  # by slot
        self._roles: dict[int, RowRoles] = {}  # by slot
        self._special: dict[int, RowRoles] = {}  # by slot, those that are not plain
        self._loras: dict[int, LoraSet] = {}  # by slot, of images that have some
        self._guides: dict[int, Guide] = {}  # by slot
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
        for give_up in (True, False):
            for arrived, flight in wanted.items():
                if arrived in self._slot_of:
                    self._resize(self._slot_of[arrived], flight.rows, give_up=give_up)
        for arrived, flight in wanted.items():
            if arrived not in self._slot_of:
                self._enter(flight)
        self._close_gaps(rows)
        self._guides = {
            self._slot_of[arrived]: guide
            for arrived, flight in wanted.items()
            if (guide := flight.guide) is not None
        }
        for arrived, flight in wanted.items():
            own, step = self._rows_of[self._slot_of[arrived]], flight.step
            for row, context in zip(own, flight.told, strict=True):
                self._tell_row(row, next(c.context for c in context if step <= c.step))
        if self._changed:
            self._tell()
            self._changed = False

    def leave(self, flight: InflightRequest) -> None:
        """Takes an image out, if it is in; it keeps its state."""
        if flight.arrived in self._slot_of:
            self._leave(flight.arrived)

    def contexts(self, rows: slice) -> list[Context]:
        """For each attention the context of these rows."""
        own = [row for row in self._long_rows() if row in range(rows.start or 0, rows.stop)]
        found: list[Context] = []
        for number, (keys, values) in enumerate(self._contexts):
            if own:
                parts = (
                    LongRow(row - (rows.start or 0), *self._longer[row].contexts[number])
                    for row in own
                )
                found.append(LongContext(keys[rows], values[rows], tuple(parts)))
            else:
                found.append((keys[rows], values[rows]))
        return found

    def placed_contexts(self, rows: slice) -> list[Context]:
        """For each attention the context of these rows, of which compiled programs find the longer
        ones by `longer`.
        """
        return [
            PlacedContext(keys[rows], values[rows], _place(number))
            for number, (keys, values) in enumerate(self._contexts)
        ]

    def longer(self, rows: slice) -> Iterator[tuple[str, Change]]:
        """For each place of `placed_contexts` what puts the attention to longer contexts there."""
        kernel = F.scaled_dot_product_attention
        for number, context in enumerate(self.contexts(rows)):
            if isinstance(context, LongContext):
                yield _place(number), partial(attend_longer, kernel, context.longer)

    def adapters(self, rows: slice) -> list[tuple[slice, Layers]]:
        """The adapters of these rows, each by itself; they are counted from the first of them."""
        begin = rows.start or 0
        return [
            (slice(row - begin, row - begin + 1), loras.others)
            for slot, loras in self._loras.items()
            for row in self._rows_of[slot]
            if row in range(begin, rows.stop)
        ]

    def changes(self, rows: slice) -> dict[str, Change]:
        """Changes that these rows have in the UNet, by the names of its places."""
        begin = rows.start or 0
        perturbed: dict[str, list[int]] = {}
        freed: list[tuple[int, FreeU]] = []
        for slot, roles in self._special.items():
            own = [row - begin for row in self._rows_of[slot] if row in range(begin, rows.stop)]
            for row in roles.perturbed(self._rows_of[slot]):
                if row - begin in own:
                    for layer in roles.layers:
                        perturbed.setdefault(layer, []).append(row - begin)
            if roles.freeu is not None:
                freed += [(row, roles.freeu) for row in own]
        attentions = {layer: identity(own) for layer, own in perturbed.items()}
        return attentions | freeu_changes(freed)

    @property
    def changes_by_step(self) -> bool:
        """True for an image whose step is another at every evaluation: it is not to be captured."""
        return any(guide.clean is not None for guide in self._guides.values())

    @property
    def variant(self) -> Hashable:
        """Stands for all that a captured evaluation depends on, besides its rows: the addresses of
        long contexts and of adapters, the images of more than two rows or with changes in the
        model, and changes to guided outputs. None where there are none of these.
        """
        numbers = tuple(self._longer[row].number for row in self._long_rows())
        special = tuple((n, self._rows_of[n], roles) for n, roles in self._special.items())
        adapted = tuple((self._rows_of[slot], loras.number) for slot, loras in self._loras.items())
        guides = tuple(self._guides.items())
        parts = numbers, special, adapted, guides
        return parts if any(parts) else None

    def stage(self, flights: Sequence[InflightRequest], rows: int) -> Extent:
        """Brings the next row of every table, and the latents of so many rows, to the device.

        flights: those that joined.
        """
        extent = self._slots.stage()
        at = self._times_at.host.numpy()
        at[:] = 0
        for flight in flights:
            trajectory = flight.flying
            begin = self._timesteps.begin(flight.times)
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
        pushed: dict[int, Tensor] = {}
        for slot, roles in self._special.items():
            prompts = roles.prompts(self._rows_of[slot])
            perturbed = roles.perturbed(self._rows_of[slot])
            if roles.weights != (1.0,):
                # All parts of the prompt, away from the negative one (Liu et al. 2022, eq. 11).
                given[slot].copy_(without[slot])
                for row, weight in zip(prompts, roles.weights, strict=True):
                    given[slot].add_(eps[row] - without[slot], alpha=weight)
            if perturbed:
                # And away from each part without structure (Ahn et al. 2024, eq. 16).
                push = pushed[slot] = torch.zeros_like(given[slot])
                for row, other, weight in zip(prompts, perturbed, roles.weights, strict=True):
                    push.add_(eps[row] - eps[other], alpha=weight * roles.pag_scale)
        self._slots.step(without, given, extent, self._guides, pushed)

    def stepped(self) -> None:
        """Counts the step that every image took."""
        self._slots.stepped()

    def _resize(self, slot: int, rows: int, *, give_up: bool) -> None:
        """Gives an image as many rows as its guidance takes now; the prompt's is the last.

        give_up: only fewer rows, else only more.
        """
        own = self._rows_of[slot]
        if give_up and rows < len(own):
            for row in own[:-rows]:
                self._told.pop(row, None)
            self._rows_of[slot] = own[-rows:]
            self._changed = True
        elif not give_up and rows > len(own):
            self._rows_of[slot] = (*self._free_rows()[: rows - len(own)], *own)
            self._changed = True

    def _free_rows(self) -> list[int]:
        taken = {row for rows in self._rows_of.values() for row in rows}
        return [row for row in range(len(self.latents)) if row not in taken]

    def _enter(self, flight: InflightRequest) -> None:
        slot = self._free_slot()
        rows = tuple(self._free_rows()[: flight.rows])
        self._slots.put(slot, flight.flying)
        self._slot_of[flight.arrived] = slot
        self._rows_of[slot] = rows
        self._roles[slot] = flight.roles
        if not flight.roles.plain:
            self._special[slot] = flight.roles
        if flight.loras is not None:
            self._loras[slot] = flight.loras
        self._changed = True

    def _leave(self, arrived: int) -> None:
        slot = self._slot_of.pop(arrived)
        for row in self._rows_of.pop(slot):
            self._told.pop(row, None)
        del self._roles[slot]
        self._special.pop(slot, None)
        self._loras.pop(slot, None)
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
            if source in self._told:  # not an image that just came
                self._tell_row(target, self._told.pop(source))
        self._rows_of = {
            slot: tuple(moves.get(row, row) for row in own) for slot, own in self._rows_of.items()
        }
        self._changed = True

    def _long_rows(self) -> list[int]:
        """Rows of images whose prompts have several chunks at this step."""
        return sorted(row for row, context in self._told.items() if len(context) > 1)

    def _tell_row(self, row: int, context: TextContext) -> None:
        """Copies the context of a row to where the model reads it, unless it is there."""
        if self._told.get(row) is context:
            return
        first, *others = context
        if not self._contexts:
            rows = len(self.latents)
            self._contexts = [
                (keys.new_zeros(rows, *keys.shape), values.new_zeros(rows, *values.shape))
                for keys, values in first
            ]
        for (all_keys, all_values), (keys, values) in zip(self._contexts, first, strict=True):
            all_keys[row].copy_(keys)
            all_values[row].copy_(values)
        if others:
            self._write_long(row, context)
        self._told[row] = context

    def _write_long(self, row: int, context: TextContext) -> None:
        layers = list(zip(*context, strict=True))  # by attention, of each chunk
        known = self._longer.get(row)
        if known is None or known.chunks != len(context):
            self._buffers += 1
            buffers = []
            for (keys, values), *_ in layers:
                heads, length, size = keys.shape
                wide = (1, heads, length * len(context), size)
                buffers.append((keys.new_zeros(wide), values.new_zeros(wide)))
            known = self._longer[row] = _LongBuffer(self._buffers, len(context), buffers)
        for (all_keys, all_values), chunks in zip(known.contexts, layers, strict=True):
            for number, (keys, values) in enumerate(chunks):
                part = slice(number * keys.shape[1], (number + 1) * keys.shape[1])
                all_keys[0, :, part].copy_(keys)
                all_values[0, :, part].copy_(values)

    def _tell(self) -> None:
        """Tells the device whose the rows are. A free one has the zeros of a free slot."""
        owners, first, last = (u.host.numpy() for u in (self._owners, self._first, self._last))
        # There is one where a row is free, for an image has at least a row.
        owners[:] = min(self._free_slot(), len(owners) - 1)
        first[:] = last[:] = 0
        for slot, rows in self._rows_of.items():
            owners[list(rows)] = slot
            first[slot], last[slot] = self._roles[slot].without(rows), rows[-1]
        for upload in (self._owners, self._first, self._last):
            upload.send()


def _place(number: int) -> str:
    """Place of the contexts of an attention in `sd_core.model.beside`."""
    return f"context {number}"
