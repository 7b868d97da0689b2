"""Renders one claimed shard and tells the ledger: image first, then its record, then its bit."""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from jobs.errors import DamagedLedgerError, LedgerError
from jobs.ledger.base import Lease, Ledger
from jobs.records import Failure
from jobs.task import Task
from sd_core.engine import Engine
from worker.finish import Finisher, ShardRecords
from worker.inputs import Inputs
from worker.meter import NO_METER, Meter
from worker.runner import Manner, Runner
from worker.saved import SavedImages

log = logging.getLogger(__name__)

SETTLE_EVERY_S = 2.0
"""Most time between an image's record and its bit; a crash costs a look at the store for each."""

RETRY_S = 1.0
"""Between two tries to reach a ledger that went away."""


class StopReason(enum.Enum):
    LOST = "lost"  # somebody else may hold the shard
    CANCELLED = "cancelled"
    DRAINING = "draining"  # this worker ends


@dataclass(eq=False)
class Holding:
    """A lease that this process holds, and what the heart must know of it.

    stop: set to end between two steps; why says the reason.
    """

    lease: Lease
    stop: threading.Event = field(default_factory=threading.Event)
    why: StopReason | None = None
    _evaluated: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def end(self, why: StopReason) -> None:
        """The first reason counts, except that a lost lease is lost whatever came before."""
        if self.why is None or why is StopReason.LOST:
            self.why = why
        self.stop.set()

    def count(self) -> None:
        with self._lock:
            self._evaluated += 1

    def take_evaluated(self) -> int:
        """Model evaluations since this was last called."""
        with self._lock:
            evaluated, self._evaluated = self._evaluated, 0
            return evaluated

    def give_back(self, evaluated: int) -> None:
        """What was taken, and could not be told."""
        with self._lock:
            self._evaluated += evaluated


class Settler:
    """Gathers what became of a shard's images and settles them in the ledger, a few at a time.

    An observer of the runner. Images are settled only after their records are in the store.
    """

    def __init__(
        self,
        ledger: Ledger,
        holding: Holding,
        records: ShardRecords,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._holding = holding
        self._records = records
        self._clock = clock
        self._done: list[int] = []
        self._failed: list[Failure] = []
        self._settled_at = clock()
        self._lock = threading.Lock()  # of the three fields above
        self._settling = threading.Lock()

    def step(self) -> None:
        self._holding.count()

    def rendered(self, index: int) -> None:
        self._add(done=index)

    def reused(self, index: int, evaluations: int) -> None:
        self._add(done=index)

    def failed(self, failure: Failure, evaluations: int) -> None:
        log.warning("image failed: %s", failure.reason)
        self._add(failed=failure)

    def _add(self, *, done: int | None = None, failed: Failure | None = None) -> None:
        with self._lock:
            if done is not None:
                self._done.append(done)
            if failed is not None:
                self._failed.append(failed)
            due = self._clock() - self._settled_at >= SETTLE_EVERY_S
        if due and self._settling.acquire(blocking=False):
            try:
                self._settle()
            except LedgerError:
                pass  # it is tried again with the next image, and at the end
            finally:
                self._settling.release()

    def finish(self) -> None:
        """Settles the rest, however long the ledger is away: what is done is not thrown away.

        Ends early if the lease is lost. Raises `StoreError` if the records cannot be written, and
        `DamagedLedgerError`, as waiting does not help there.
        """
        with self._settling:
            while self._holding.why is not StopReason.LOST:
                try:
                    return self._settle()
                except DamagedLedgerError:
                    raise
                except LedgerError:
                    # Not `stop.wait`: it may be set, and the answer is still worth waiting for.
                    time.sleep(RETRY_S)
        return None

    def _settle(self) -> None:
        with self._lock:
            done, failed = self._done, self._failed
            self._done, self._failed = [], []
            self._settled_at = self._clock()
        try:
            self._records.flush()
            if (done or failed) and not self._ledger.settle(self._holding.lease, done, failed):
                self._holding.end(StopReason.LOST)
        except BaseException:
            with self._lock:
                self._done, self._failed = done + self._done, failed + self._failed
            raise


def render_shard(
    tasks: Iterable[Task],
    holding: Holding,
    *,
    engine: Engine,
    finisher: Finisher,
    records: ShardRecords,
    inputs: Inputs,
    ledger: Ledger,
    saved: SavedImages,
    manner: Manner,
    meter: Meter = NO_METER,
) -> int:
    """Renders the tasks, those of the claim, until all are settled or the holding's stop is set;
    how many were done.

    records: the shard's, which the finisher adds to. Raises `StoreError` if the store fails and
    `DeviceLostError` if the device does; what was settled before stays so.
    """
    settler = Settler(ledger, holding, records)
    device = engine.model.device.type
    runner = Runner(
        engine,
        finisher,
        records,
        inputs,
        settler,
        device=device,
        saved=saved,
        manner=manner,
        meter=meter,
    )
    try:
        outcome = runner.render(tasks, holding.stop)
    finally:
        settler.finish()
    return outcome.rendered + outcome.reused
