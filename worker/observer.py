"""Events of a worker, told to observers that count or show them.

Metrics, the progress of a run and the reports to the ledger are observers.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.ledger.types import ClaimAnswer
from jobs.task import Failure
from worker.faults import Reason


class Observer:
    """Told as shards and images move; an observer overrides what it wants to know.

    Methods are called from several threads and return at once.
    """

    def claimed(self, answer: ClaimAnswer) -> None:
        """The ledger answered a delivery."""

    def lease_lost(self) -> None:
        """Another worker may have a shard that this one was at."""

    def submitted(self) -> None:
        """An image went to the engine."""

    def left(self) -> None:
        """It left the engine again: stored, failed or cancelled."""

    def step(self) -> None:
        """One image was evaluated once."""

    def uploaded(self, seconds: float, size_bytes: int) -> None:
        """One image was put in the store."""

    def rendered(self, index: int, seconds: float) -> None:
        """An image was rendered and stored. seconds: from admission to the last pixel."""

    def reused(self, index: int, evaluations: int) -> None:
        """An image was in the store already. evaluations: those of it that are not needed."""

    def failed(self, failure: Failure, evaluations: int, reason: Reason) -> None:
        """An image could not be made. evaluations: those of it that are not needed."""


class Observers(Observer):
    """Several observers as one, told in turn."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def claimed(self, answer: ClaimAnswer) -> None:
        for observer in self._observers:
            observer.claimed(answer)

    def lease_lost(self) -> None:
        for observer in self._observers:
            observer.lease_lost()

    def submitted(self) -> None:
        for observer in self._observers:
            observer.submitted()

    def left(self) -> None:
        for observer in self._observers:
            observer.left()

    def step(self) -> None:
        for observer in self._observers:
            observer.step()

    def uploaded(self, seconds: float, size_bytes: int) -> None:
        for observer in self._observers:
            observer.uploaded(seconds, size_bytes)

    def rendered(self, index: int, seconds: float) -> None:
        for observer in self._observers:
            observer.rendered(index, seconds)

    def reused(self, index: int, evaluations: int) -> None:
        for observer in self._observers:
            observer.reused(index, evaluations)

    def failed(self, failure: Failure, evaluations: int, reason: Reason) -> None:
        for observer in self._observers:
            observer.failed(failure, evaluations, reason)
