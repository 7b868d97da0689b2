"""A lease that this process holds, and why work on its shard ends early."""

from __future__ import annotations

import enum
import threading
from dataclasses import dataclass, field
from typing import NamedTuple

from jobs.ledger.types import Lease


class StopReason(enum.Enum):
    """Why work on a shard ends before all of its images are settled."""

    LOST = "lost"  # somebody else may hold the shard
    CANCELLED = "cancelled"
    DRAINING = "draining"  # this worker ends


class Work(NamedTuple):
    """Work under a lease that the ledger was not told of yet.

    evaluated: evaluations of the model. worked_s: the lease's share of the worker's seconds.
    """

    evaluated: int
    worked_s: float


@dataclass(eq=False)
class HeldLease:
    """A lease that this process holds, and what the heartbeat must know of it.

    stop: set to end between two steps; why says the reason.
    """

    lease: Lease
    stop: threading.Event = field(default_factory=threading.Event)
    why: StopReason | None = None
    _evaluated: int = 0
    _worked_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def end(self, why: StopReason) -> None:
        """The first reason counts, except that a lost lease is lost whatever came before."""
        if self.why is None or why is StopReason.LOST:
            self.why = why
        self.stop.set()

    def count(self) -> None:
        with self._lock:
            self._evaluated += 1

    def work(self, seconds: float) -> None:
        """Add a share of the worker's time."""
        with self._lock:
            self._worked_s += seconds

    def take_work(self) -> Work:
        """Work since this was last called."""
        with self._lock:
            work = Work(self._evaluated, self._worked_s)
            self._evaluated, self._worked_s = 0, 0.0
            return work

    def give_back(self, work: Work) -> None:
        """Add work that was taken and could not be told to the ledger."""
        with self._lock:
            self._evaluated += work.evaluated
            self._worked_s += work.worked_s
