"""Ends jobs whose every image is settled: failures, gallery, and `done.json`, last of all.

Jobs that were cancelled get a gallery of what they have.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from jobs.errors import DamagedError, DamagedLedgerError, LedgerError, NotFoundError, SdbatchError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.plan import PlanReader
from jobs.folder.records import write_failures
from jobs.ledger.base import Ledger
from jobs.ledger.types import JobState, JobStatus
from jobs.report import write_unfinished_report
from jobs.reuse import index_pictures
from jobs.storage import Store
from jobs.task import Failure
from worker.faults import report_job_error
from worker.output.done import end_job
from worker.output.repair_records import BrokenImagesError

log = logging.getLogger(__name__)

HOLD_S = 60.0
"""A worker that says nothing for so long no longer ends the job it had begun to."""

MOST_TRIES = 3
"""To write a job's end before it is left for another round."""


SHOW_WITHIN_S = 24 * 3600.0
"""A job that was cancelled longer ago gets no gallery any more."""

SHOW_AGAIN_S = 300.0
"""After so long it is looked again at a job whose gallery failed, or was another worker's."""


class JobFinalizer:
    """In a thread of its own, because the gallery of a million images takes minutes. owner: this
    worker.
    """

    def __init__(self, ledger: Ledger, open_store: Callable[[str], Store], *, owner: str) -> None:
        self._ledger = ledger
        self._open_store = open_store
        self._owner = owner
        self._thread: threading.Thread | None = None
        self._ending: str | None = None  # the job whose lock is held
        self._lock = threading.Lock()  # of that
        self._look_at_s: dict[str, float] = {}  # a cancelled job's end -> when by the ledger

    def round(self, cancelled: Sequence[JobStatus] = ()) -> None:
        """Begins to end what is settled, unless it is still at it. Raises `LedgerError`.

        cancelled: jobs that may be without their gallery. To be called more often than every
        `HOLD_S`.
        """
        with self._lock:
            if self._ending is not None:
                self._ledger.lock(finish_lock(self._ending), self._owner, HOLD_S)
        if self._thread is not None and self._thread.is_alive():
            return
        work = [(job_id, self._end) for job_id in self._ledger.settled_jobs()]
        if any(map(_can_be_shown, cancelled)):
            now_s = self._ledger.time_s()
            work += [(job.job_id, self._show) for job in cancelled if self._is_due(job, now_s)]
        if work:
            self._thread = threading.Thread(
                target=self._end_all, args=(work,), name="sdbatch-end-jobs", daemon=True
            )
            self._thread.start()

    def wait(self) -> None:
        """Until what has begun is ended."""
        if self._thread is not None:
            self._thread.join()

    def _is_due(self, job: JobStatus, now_s: float) -> bool:
        """True if a cancelled job may be without its gallery; then it is looked at."""
        ended_s = job.ended_s
        if ended_s is None or now_s - ended_s > SHOW_WITHIN_S or not _can_be_shown(job):
            return False
        if now_s < self._look_at_s.get(_end_of(job), 0.0):
            return False
        self._look_at_s[_end_of(job)] = now_s + SHOW_AGAIN_S
        return True

    def _end_all(self, work: Sequence[tuple[str, Callable[[str], None]]]) -> None:
        for job_id, end in work:
            try:
                self._if_free(job_id, end)
            except DamagedLedgerError as error:
                log.error("job %s cannot be finished: %s", job_id, error)
            except LedgerError as error:
                log.warning("jobs cannot be finished, trying again: %s", error)
                return
            except SdbatchError as error:
                log.error("job %s cannot be finished yet: %s", job_id, error)
                report_job_error(self._ledger, job_id, self._owner, error)
            except Exception:  # one job is not to keep the others from their end
                log.exception("job %s cannot be finished", job_id)

    def _if_free(self, job_id: str, end: Callable[[str], None]) -> None:
        if not self._ledger.lock(finish_lock(job_id), self._owner, HOLD_S):
            return
        with self._lock:
            self._ending = job_id
        try:
            end(job_id)
        finally:
            with self._lock:
                self._ending = None
                self._ledger.unlock(finish_lock(job_id), self._owner)

    def _end(self, job_id: str) -> None:
        """Write the end and tell the ledger. Meanwhile images may be tried again and settled
        another way, or another worker may have ended the job while this one slept. Then the files
        are not the job's end, and are written again.
        """
        for _ in range(MOST_TRIES):
            status = self._ledger.status(job_id)
            if not status.settled:
                return  # the reconciler finds it again when it is
            try:
                self._write_end(status)
            except BrokenImagesError as error:
                log.warning("job %s: %s", job_id, error)
                self._ledger.reopen(job_id, error.indices)
                return
            state = self._ledger.set_state(job_id, JobState.DONE, failed=status.failed)
            if state is JobState.DONE and self._ledger.status(job_id).failed == status.failed:
                log.info("job %s is done", job_id)
                return
        log.warning("job %s moved on while its end was written", job_id)

    def _show(self, job_id: str) -> None:
        """Writes the gallery of a cancelled job, once: who did it keeps a lock on the job's end."""
        job = self._ledger.status(job_id)
        end = _end_of(job)
        if job.state is not JobState.CANCELLED or not self._ledger.lock(end, self._owner, HOLD_S):
            return
        keys, store = JobKeys(job_id), self._open_store(job.store)
        failures = with_prompts(self._ledger.failures(job_id), PlanReader(JobFolder(store, keys)))
        write_failures(JobFolder(store, keys), failures)
        write_unfinished_report(JobFolder(store, keys), failures, planned=job.total)
        index_pictures(JobFolder(store, keys))
        self._ledger.lock(end, self._owner, 2 * SHOW_WITHIN_S)
        self._look_at_s[end] = math.inf
        log.info("job %s was cancelled; its gallery is written", job_id)

    def _write_end(self, status: JobStatus) -> None:
        keys, store = JobKeys(status.job_id), self._open_store(status.store)
        failures = with_prompts(
            self._ledger.failures(status.job_id), PlanReader(JobFolder(store, keys))
        )
        write_failures(JobFolder(store, keys), failures)
        end_job(JobFolder(store, keys), failures, {"name": status.model}, images=status.total)


def _can_be_shown(job: JobStatus) -> bool:
    """True if a cancelled job has pictures, and nobody renders any more."""
    return job.done > 0 and job.leased == 0


def _end_of(job: JobStatus) -> str:
    return f"shown:{job.job_id}:{job.ended_s}"


def finish_lock(job_id: str) -> str:
    """Name of the lock on a job's end."""
    return f"finish:{job_id}"


def with_prompts(failures: Sequence[Failure], plan: PlanReader) -> list[Failure]:
    """The ledger gives images up without knowing the plan (`jobs.ledger.types.given_up`)."""
    filled = []
    for failure in failures:
        if not failure.name:
            try:
                (task,) = plan.tasks([failure.index])
            except (NotFoundError, DamagedError) as error:
                log.warning("an image that failed has no prompt: %s", error)
            else:
                failure = replace(
                    failure, name=task.name, prompt=task.prompt, seed=task.sampling.seed
                )
        filled.append(failure)
    return filled
