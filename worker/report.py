"""Every few seconds: tells the ledger who is here, and reads from it how the queue stands."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from jobs.errors import LedgerError
from jobs.ledger.base import JobState, JobStatus, Ledger, WorkerInfo
from worker.metrics import Metrics, QueueFigures
from worker.service import Worker

EVERY_S = 5.0
SEEN_S = 20.0
"""A worker that does not report for so long is taken off the list."""

STOPPED_SEEN_S = 60.0
"""How long a worker that stopped by itself is listed, for somebody to read why."""

_EVENTS = 1000  # read at a time


class LedgerClock:
    """The ledger's time, as far as its events tell; workers' clocks may be hours apart.

    Never later than the real one; behind it by at most the time since the ledger last noted
    something when this worker began.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._offset_s: float | None = None

    def noted(self, time_s: float) -> None:
        """A time that the ledger wrote down before now."""
        offset_s = time_s - self._clock()
        self._offset_s = offset_s if self._offset_s is None else max(self._offset_s, offset_s)

    def since(self, time_s: float) -> float:
        """Seconds from then to now, at least 0."""
        if self._offset_s is None:
            return 0.0
        return max(0.0, self._clock() + self._offset_s - time_s)


class QueueReader:
    """Reads the figures of all models from a ledger."""

    def __init__(self, ledger: Ledger, clock: LedgerClock | None = None) -> None:
        self._ledger = ledger
        self._clock = LedgerClock() if clock is None else clock
        self._read_to: dict[str, str] = {}  # the last event seen of the oldest jobs

    def read(self) -> dict[str, QueueFigures]:
        """By model, for models that have workers or active jobs. Raises `LedgerError`."""
        jobs = self._ledger.jobs()
        workers = Counter(
            worker.model
            for worker in self._ledger.workers()
            if not worker.state.startswith("stopped")
        )
        for job in jobs:
            self._clock.noted(job.created_s)
        active = [job for job in jobs if job.state is JobState.ACTIVE]
        models = sorted({*workers, *(job.model for job in active)})
        oldest = {model: self._oldest(active, model) for model in models}
        self._look_at_events([job for job in oldest.values() if job is not None])
        return {
            model: self._figures(
                [job for job in active if job.model == model], oldest[model], workers[model]
            )
            for model in models
        }

    def _oldest(self, active: Sequence[JobStatus], model: str) -> JobStatus | None:
        unsettled = [job for job in active if job.model == model and not job.settled]
        return min(unsettled, key=lambda job: job.created_s, default=None)

    def _look_at_events(self, jobs: Sequence[JobStatus]) -> None:
        read_to = {job.job_id: self._read_to.get(job.job_id, "0") for job in jobs}
        for job_id in read_to:
            full = True
            while full:
                events = self._ledger.events(job_id, read_to[job_id], _EVENTS)
                if events:
                    self._clock.noted(events[-1].time_s)
                    read_to[job_id] = events[-1].id
                full = len(events) == _EVENTS
        self._read_to = read_to

    def _figures(
        self, active: Sequence[JobStatus], oldest: JobStatus | None, workers: int
    ) -> QueueFigures:
        return QueueFigures(
            pending_images=sum(max(0, job.total - job.done - job.failed) for job in active),
            leased_shards=sum(job.leased for job in active),
            published_shards=sum(job.published for job in active),
            failed_images=sum(job.failed for job in active),
            workers=workers,
            oldest_job_s=0.0 if oldest is None else self._clock.since(oldest.created_s),
        )


class Reporter:
    """away: why the ledger did not take the last report, or None."""

    def __init__(
        self, worker: Worker, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._worker = worker
        self._metrics = metrics
        self._reader = QueueReader(worker.ledger)
        self._clock = clock
        self._taken_at = clock()
        self.away: str | None = None
        metrics.watch_reports(self.silent_s)

    def silent_s(self) -> float:
        """Seconds since the ledger last took a report, or since this one began."""
        return self._clock() - self._taken_at

    def report(self) -> None:
        """Once. Raises `LedgerError`."""
        worker = self._worker
        info = WorkerInfo(
            name=worker.owner,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=str(worker.engine.model.device),
            model=worker.model.name,
            leases=len(worker.heart.holdings),
            images=worker.images,
            state=worker.state,
        )
        worker.ledger.worker_seen(info, SEEN_S if worker.stopped is None else STOPPED_SEEN_S)
        self._metrics.queue = self._reader.read()
        self._taken_at = self._clock()

    def run(self, stop: threading.Event, every_s: float = EVERY_S) -> None:
        """Reports until stop is set, and once more; for a thread of its own."""
        while True:
            ending = stop.is_set()
            try:
                self.report()
                self.away = None
            except LedgerError as error:  # it is told again in a few seconds
                self.away = str(error)
            if ending:
                return
            stop.wait(every_s)
