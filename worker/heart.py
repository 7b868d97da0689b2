"""Renews the leases that this process holds, all in one round trip; sees jobs being cancelled."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from jobs.errors import LedgerError
from jobs.ledger.base import LEASE_S, Beat, JobState, Ledger
from worker.shard import Holding, StopReason

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks at the jobs, each a read of a word per job: whoever cancels a job waits so long
and for the step that its images are at.
"""

_REASONS = {Beat.LOST: StopReason.LOST, Beat.CANCELLED: StopReason.CANCELLED}


class Heart:
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
        self._holdings: dict[Holding, float] = {}  # and when the ledger last knew of each
        self._lock = threading.Lock()

    def hold(self, holding: Holding) -> None:
        with self._lock:
            self._holdings[holding] = self._clock()

    def drop(self, holding: Holding) -> None:
        with self._lock:
            self._holdings.pop(holding, None)

    @property
    def holdings(self) -> list[Holding]:
        with self._lock:
            return list(self._holdings)

    def beat(self) -> None:
        """Renews everything once."""
        holdings = self.holdings
        if not holdings:
            return
        evaluated = [holding.take_evaluated() for holding in holdings]
        asked_at = self._clock()  # the lease counts from when the ledger got the question, or later
        try:
            beats = self._ledger.heartbeat([h.lease for h in holdings], evaluated)
        except LedgerError:
            for holding, count in zip(holdings, evaluated, strict=True):
                holding.give_back(count)
            self._give_up_on_the_old()
            return
        with self._lock:
            for holding in holdings:
                if holding in self._holdings:
                    self._holdings[holding] = asked_at
        for holding, beat in zip(holdings, beats, strict=True):
            if beat in _REASONS:
                holding.end(_REASONS[beat])

    def look(self) -> None:
        """Ends what is of jobs that are cancelled or forgotten. Renews nothing."""
        holdings = self.holdings
        jobs = sorted({holding.lease.job_id for holding in holdings})
        if not jobs:
            return
        try:
            states = dict(zip(jobs, self._ledger.states(jobs), strict=True))
        except LedgerError:
            self._give_up_on_the_old()
            return
        for holding in holdings:
            state = states[holding.lease.job_id]
            if state is None:
                holding.end(StopReason.LOST)
            elif state is JobState.CANCELLED:
                holding.end(StopReason.CANCELLED)

    def _give_up_on_the_old(self) -> None:
        with self._lock:
            known = list(self._holdings.items())
        for holding, known_at in known:
            if self._clock() - known_at >= self._lease_s:
                holding.end(StopReason.LOST)

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
