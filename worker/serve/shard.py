"""Renders one claimed shard and tells the ledger: image first, then its record, then its bit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from jobs.errors import DamagedLedgerError, LedgerError
from jobs.folder.record_writer import ShardRecords
from jobs.ledger.base import Ledger
from jobs.task import Failure, Task
from worker.faults import Reason
from worker.observer import Observer, Observers
from worker.render.job import RenderJob
from worker.render.runner import RenderOptions, Runner
from worker.serve.lease import HeldLease, StopReason

log = logging.getLogger(__name__)

SETTLE_EVERY_S = 2.0
"""Most time between an image's record and its bit; a crash costs a look at the store for each."""

RETRY_S = 1.0
"""Between two tries to reach a ledger that went away."""


class LedgerReporter(Observer):
    """Gathers what became of a shard's images and settles them in the ledger, a few at a time.

    Images are settled only after their records are in the store.
    """

    def __init__(
        self,
        ledger: Ledger,
        held: HeldLease,
        records: ShardRecords,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._held = held
        self._records = records
        self._clock = clock
        self._done: list[int] = []
        self._failed: list[Failure] = []
        self._settled_at = clock()
        self._lock = threading.Lock()  # of the three fields above
        self._settling = threading.Lock()

    def step(self) -> None:
        self._held.count()

    def rendered(self, index: int, seconds: float) -> None:
        self._add(done=index)

    def reused(self, index: int, evaluations: int) -> None:
        self._add(done=index)

    def failed(self, failure: Failure, evaluations: int, reason: Reason) -> None:
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
        """Settles the rest, however long the ledger is unreachable: what is done is not thrown
        away.

        Ends early if the lease is lost. Raises `StoreError` if the records cannot be written, and
        `DamagedLedgerError`, as waiting does not help there.
        """
        with self._settling:
            while self._held.why is not StopReason.LOST:
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
            if (done or failed) and not self._ledger.settle(self._held.lease, done, failed):
                self._held.end(StopReason.LOST)
        except BaseException:
            with self._lock:
                self._done, self._failed = done + self._done, failed + self._failed
            raise


def render_shard(
    tasks: Iterable[Task],
    held: HeldLease,
    job: RenderJob,
    *,
    ledger: Ledger,
    observer: Observer,
    options: RenderOptions,
) -> None:
    """Render the tasks, those of the claim, until all are settled or the lease's stop is set.

    Raises `StoreError` if the store fails and `DeviceLostError` if the device does; what was
    settled before stays so.
    """
    records = ShardRecords(job.folder, held.lease.shard)
    reporter = LedgerReporter(ledger, held, records)
    runner = Runner(job, records, Observers((observer, reporter)), options)
    try:
        runner.render(tasks, held.stop)
    finally:
        reporter.finish()
