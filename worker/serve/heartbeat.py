"""Renews the leases that this process holds, all in one round trip; sees jobs being cancelled."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from jobs.errors import LedgerError
from jobs.ledger.base import Ledger
from jobs.ledger.types import LEASE_S, Beat, JobState
from worker.serve.lease import HeldLease, StopReason, Work

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Seconds between two looks at the states of jobs, each a read of a word per job. A cancelled job
goes on for so long, and until the step that its images are at.
"""

_REASONS = {Beat.LOST: StopReason.LOST, Beat.CANCELLED: StopReason.CANCELLED}


class LeaseHeartbeat:
    """Beats while it runs. Threads may hold and drop at any time.

    lease_s: how long a lease lasts; without an answer for so long, it is taken for lost, since
    another worker may have it by then.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        every_s: float = LEASE_S / 4,
        lease_s: float = LEASE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._every_s = every_s
        self._lease_s = lease_s
        self._clock = clock
        self._holdings: dict[HeldLease, float] = {}  # and when the ledger last knew of each
        self._shared_at = clock()
        self._lock = threading.Lock()  # of these two

    def hold(self, held: HeldLease) -> None:
        with self._lock:
            self._share_time()
            self._holdings[held] = self._clock()

    def drop(self, held: HeldLease) -> None:
        with self._lock:
            self._share_time()
            self._holdings.pop(held, None)

    def take_work(self, held: HeldLease) -> Work:
        """Work under a lease that the ledger is about to be told of."""
        with self._lock:
            self._share_time()
        return held.take_work()

    def _share_time(self) -> None:
        """Give the time since the last call to the leases that were held meanwhile, in equal parts.

        The lock is held.
        """
        now = self._clock()
        for held in self._holdings:
            held.work((now - self._shared_at) / len(self._holdings))
        self._shared_at = now

    @property
    def held_leases(self) -> list[HeldLease]:
        with self._lock:
            return list(self._holdings)

    def beat(self) -> None:
        """Renews everything once."""
        held_leases = self.held_leases
        if not held_leases:
            return
        work = [self.take_work(held) for held in held_leases]
        evaluated, worked_s = zip(*work, strict=True)
        asked_at = self._clock()  # the lease counts from when the ledger got the question, or later
        try:
            beats = self._ledger.heartbeat([h.lease for h in held_leases], evaluated, worked_s)
        except LedgerError:
            for held, untold in zip(held_leases, work, strict=True):
                held.give_back(untold)
            self._give_up_on_the_old()
            return
        with self._lock:
            for held in held_leases:
                if held in self._holdings:
                    self._holdings[held] = asked_at
        for held, beat in zip(held_leases, beats, strict=True):
            if beat in _REASONS:
                held.end(_REASONS[beat])

    def look(self) -> None:
        """Ends what is of jobs that are cancelled or forgotten. Renews nothing."""
        held_leases = self.held_leases
        jobs = sorted({held.lease.job_id for held in held_leases})
        if not jobs:
            return
        try:
            states = dict(zip(jobs, self._ledger.states(jobs), strict=True))
        except LedgerError:
            self._give_up_on_the_old()
            return
        for held in held_leases:
            state = states[held.lease.job_id]
            if state is None:
                held.end(StopReason.LOST)
            elif state is JobState.CANCELLED:
                held.end(StopReason.CANCELLED)

    def _give_up_on_the_old(self) -> None:
        with self._lock:
            known = list(self._holdings.items())
        for held, known_at in known:
            if self._clock() - known_at >= self._lease_s:
                held.end(StopReason.LOST)

    def run(self, stop: threading.Event) -> None:
        """Beats, and looks in between, until stop is set; for a thread of its own."""
        beat_at = self._clock() + self._every_s
        while not stop.wait(max(0.0, min(LOOK_S, beat_at - self._clock()))):
            try:
                if self._clock() < beat_at:
                    self.look()
                    continue
                beat_at = self._clock() + self._every_s
                self.beat()
            except Exception:  # without this thread, every lease would run out, one after the other
                log.exception("the leases cannot be renewed, trying again")
                self._give_up_on_the_old()
