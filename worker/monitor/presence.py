"""Every few seconds: tells the ledger who is here, and reads from it how the queue stands."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence

from jobs.client.served import served_models
from jobs.errors import DamagedLedgerError, LedgerError
from jobs.ledger.base import Ledger
from jobs.ledger.types import JobState, JobStatus, WorkerInfo
from worker.monitor.metrics import JobFigures, Metrics, Queue, QueueFigures
from worker.monitor.speed import Speed
from worker.serve.worker import Worker

EVERY_S = 5.0
SEEN_S = 20.0
"""A worker that does not report for so long is taken off the list."""

ENDED_SHOWN_S = 900.0
"""How long a job's figures are shown after its end, for a Prometheus that looks seldom."""

JOBS_SHOWN = 200
"""Jobs whose figures are shown at most, the latest: each is a series on every worker."""

STOPPED_SEEN_S = 60.0
"""How long a worker that stopped by itself is listed, for somebody to read why."""

log = logging.getLogger(__name__)


class QueueReader:
    """Reads the figures of all models and jobs from a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def read(self) -> Queue:
        """Models that have workers or active jobs, and the latest jobs. Raises `LedgerError`."""
        jobs = self._ledger.jobs()
        workers = served_models(self._ledger.workers())
        now_s = self._ledger.time_s()  # workers' clocks may be hours apart
        active: list[JobStatus] = []  # those of several models by their parts
        for job in jobs:
            if job.state is JobState.ACTIVE:
                with contextlib.suppress(DamagedLedgerError):  # the reconciler tells it
                    active += self._ledger.parts(job)
        models = sorted({*workers, *(job.model for job in active)})
        by_model = {
            model: self._figures(
                [job for job in active if job.model == model], workers[model], now_s
            )
            for model in models
        }
        shown = [job for job in jobs if (job.ended_s or now_s) > now_s - ENDED_SHOWN_S]
        return Queue(
            by_model,
            [JobFigures(job.job_id, job.submitter, job.worker_s) for job in shown[:JOBS_SHOWN]],
        )

    def _figures(self, active: Sequence[JobStatus], workers: int, now_s: float) -> QueueFigures:
        begun_s = [job.created_s for job in active if not job.settled]
        return QueueFigures(
            pending_images=sum(job.to_do for job in active),
            leased_shards=sum(job.leased for job in active),
            published_shards=sum(job.published for job in active),
            failed_images=sum(job.failed for job in active),
            workers=workers,
            oldest_job_s=max(0.0, now_s - min(begun_s, default=now_s)),
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
        self._speed = Speed()
        self.away: str | None = None
        metrics.watch_reports(self.silent_s)

    def silent_s(self) -> float:
        """Seconds since the ledger last took a report, or since this one began."""
        return self._clock() - self._taken_at

    def report(self) -> None:
        """Once. Raises `LedgerError`."""
        worker, batch, finished = self._worker, self._metrics.batch, self._metrics.finished
        leases = len(worker.heartbeat.held_leases)
        if not leases:
            self._speed.rest()
        info = WorkerInfo(
            name=worker.owner,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=str(worker.engine.model.device),
            model=worker.model.name,
            leases=leases,
            images=finished,
            state=worker.state,
            rows=None if batch is None else batch.rows,
            rows_used=None if batch is None else batch.rows_used,
            images_per_s=self._speed.of(self._clock(), finished),
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
            except Exception as error:  # without this thread, nobody would know of the worker
                log.exception("reporting failed, trying again")
                self.away = type(error).__name__
            if ending:
                return
            stop.wait(every_s)
