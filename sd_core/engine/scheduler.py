"""Choice of the images that get the next evaluation: a pure decision, no tensors.

An image in flight is a small value, so any of them can wait a step. Every tick therefore chooses
again: first the group, images that may share a batch, for which they are of one latent shape, then
images of that group until the batch's rows are full. Higher priority goes first, and groups of one
priority take turns.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from sd_core.spec import Shape

STARVED_TICKS = 16
"""A group that saw so many evaluations of others gets one, whatever its priority."""

MOST_OVERTAKEN = 256
"""Long images begin before short ones, so that the last batches of a job are full; an image that
so many younger ones overtook begins next."""


class InflightRequest(Protocol):
    """priority: higher goes first. shape: of the latent. group: the same for images that may share
    a batch, which are of one shape. rows: of the batch. left: evaluations to go. started: it had
    evaluations. arrived: order of arrival. times_bypassed: by younger images.
    """

    times_bypassed: int

    @property
    def priority(self) -> int: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def group(self) -> Hashable: ...
    @property
    def rows(self) -> int: ...
    @property
    def left(self) -> int: ...
    @property
    def started(self) -> bool: ...
    @property
    def arrived(self) -> int: ...


F = TypeVar("F", bound=InflightRequest)


@dataclass(frozen=True)
class ScheduledBatch(Generic[F]):
    """Images of the next batch, best first."""

    group: Hashable
    flights: list[F]


class Scheduler(Generic[F]):
    """Remembers whose turn it was. room: rows that a batch of a shape holds."""

    def __init__(self, room: Callable[[Shape], int]) -> None:
        self._room = room
        self._tick = 0
        self._served: dict[Hashable, int] = {}  # tick of its last evaluation, or of its arrival
        self._starved_served = -1

    def choose(self, flights: Iterable[F]) -> ScheduledBatch[F] | None:
        """The next batch; None without flights. Nobody's turn passes until `served`."""
        groups: dict[Hashable, list[F]] = {}
        for flight in flights:
            groups.setdefault(flight.group, []).append(flight)
        self._served = {group: self._served.get(group, self._tick) for group in groups}
        if not groups:
            return None
        group = self._group(groups)
        room = self._room(groups[group][0].shape)
        return ScheduledBatch(group, self._fill(groups[group], room))

    def coming(self, flights: Iterable[F], most: int) -> Iterator[F]:
        """Images that have not begun, in the order in which they seem to begin."""
        yield from heapq.nsmallest(most, (f for f in flights if not f.started), key=_order)

    def served(self, choice: ScheduledBatch[F], flights: Iterable[F]) -> None:
        """The choice was evaluated. flights: all that it was made of."""
        self._tick += 1
        if self._starving() == choice.group:
            self._starved_served = self._tick
        self._served[choice.group] = self._tick
        began = [flight.arrived for flight in choice.flights if not flight.started]
        for flight in flights:
            if not flight.started and flight.group == choice.group and flight.arrived not in began:
                flight.times_bypassed += sum(flight.arrived < younger for younger in began)

    def _group(self, groups: dict[Hashable, list[F]]) -> Hashable:
        starving = self._starving()
        # Not twice in a row: urgent work waits one step at most.
        if starving in groups and self._starved_served != self._tick:
            return starving
        return min(
            groups,
            key=lambda group: (-max(f.priority for f in groups[group]), self._served[group]),
        )

    def _starving(self) -> Hashable | None:
        """The group that waited longest, if that is too long."""
        if not self._served:
            return None
        group = min(self._served, key=self._served.__getitem__)
        return group if self._tick - self._served[group] >= STARVED_TICKS else None

    def _fill(self, flights: list[F], room: int) -> list[F]:
        best, *others = sorted(flights, key=_order)
        chosen = [best]  # also one of more rows than there is room for, which is evaluated in parts
        room -= best.rows
        for flight in others:
            if flight.rows <= room:
                chosen.append(flight)
                room -= flight.rows
        return chosen


def _order(flight: InflightRequest) -> tuple[int, bool, bool, int, int]:
    overdue = flight.times_bypassed >= MOST_OVERTAKEN
    left = 0 if overdue else -flight.left
    return -flight.priority, not flight.started, not overdue, left, flight.arrived
