"""Galleries and data sets of jobs that go on, brought up to date about every minute."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.errors import SdbatchError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.plan import PlanReader
from jobs.ledger.base import Ledger
from jobs.ledger.types import JobState, JobStatus
from jobs.report import REFRESH_S, LiveGallery
from jobs.storage import Store
from worker.output.live_dataset import LiveDataset
from worker.output.tables import dataset_of
from worker.reconcile.finalize import HOLD_S, finish_lock, with_prompts

log = logging.getLogger(__name__)

_GOING_ON = (JobState.ACTIVE, JobState.PAUSED)


@dataclass
class _Shown:
    """A job's gallery, and its data set, if it is to have one.

    at_s: when they are due, by the ledger's clock. settled: images done and failed when the gallery
    was written.
    """

    at_s: float
    gallery: LiveGallery | None = None
    dataset: LiveDataset | None = None
    settled: tuple[int, int] = (0, 0)
    is_told: bool = False  # that it cannot be written


class GalleryRefresher:
    """In a thread of its own, so that neither rendering nor the ends of jobs wait for it. While it
    writes a job's gallery it holds the lock on the job's end, and lets go of it once the job is
    settled. owner: this worker.
    """

    def __init__(self, ledger: Ledger, open_store: Callable[[str], Store], *, owner: str) -> None:
        self._ledger = ledger
        self._open_store = open_store
        self._owner = f"{owner} gallery"  # the lock is to keep this worker's ends of jobs out, too
        self._shown: dict[str, _Shown] = {}
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def round(self, jobs: Sequence[JobStatus]) -> None:
        """Begins to write the galleries that are due, unless it is still at it. Raises
        `LedgerError`.

        jobs: all of the ledger.
        """
        if self._thread is not None and self._thread.is_alive():
            return
        going_on = [job for job in jobs if job.state in _GOING_ON and not job.settled and job.done]
        self._shown = {j.job_id: self._shown[j.job_id] for j in going_on if j.job_id in self._shown}
        if not going_on:
            return
        now_s = self._ledger.time_s()
        due = [job for job in going_on if self._is_due(job, now_s)]
        if due:
            self._thread = threading.Thread(
                target=self._refresh_all, args=(due,), name="sdbatch-galleries", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Breaks off what has begun."""
        self._stop.set()
        self.wait()

    def wait(self) -> None:
        """Until what has begun is ended."""
        if self._thread is not None:
            self._thread.join()

    def _is_due(self, job: JobStatus, now_s: float) -> bool:
        """True a minute after the job's first image, and every minute in which it had others."""
        shown = self._shown.get(job.job_id)
        if shown is None:
            self._shown[job.job_id] = _Shown(now_s + REFRESH_S)
            return False
        if now_s < shown.at_s or shown.settled == (job.done, job.failed):
            return False
        shown.at_s = now_s + REFRESH_S
        return True

    def _refresh_all(self, jobs: Sequence[JobStatus]) -> None:
        for job in jobs:
            shown = self._shown[job.job_id]
            try:
                self._refresh(job, shown)
            except SdbatchError as error:
                if not shown.is_told:
                    log.warning("job %s has no gallery for now: %s", job.job_id, error)
                shown.is_told = True
            except Exception:  # one job is not to keep the others from it
                log.exception("job %s has no gallery for now", job.job_id)

    def _refresh(self, job: JobStatus, shown: _Shown) -> None:
        lock = finish_lock(job.job_id)
        if not self._ledger.lock(lock, self._owner, HOLD_S):
            return
        try:
            folder = JobFolder(self._open_store(job.store), JobKeys(job.job_id))
            if shown.gallery is None:
                shown.gallery = LiveGallery(folder, job.total)
                if dataset_of(folder) is not None:
                    shard_ends = self._ledger.shard_ends(job.job_id)
                    shown.dataset = LiveDataset(folder, shard_ends)
            failures = with_prompts(self._ledger.failures(job.job_id), PlanReader(folder))
            if shown.gallery.refresh(failures, go_on=lambda: self._may_go_on(job.job_id)):
                shown.settled = (job.done, job.failed)
            if shown.dataset is not None:
                shown.dataset.refresh(
                    lambda some: not self._ledger.pending(job.job_id, some.start, some.stop),
                    lambda: self._may_go_on(job.job_id),
                )
        finally:
            self._ledger.unlock(lock, self._owner)

    def _may_go_on(self, job_id: str) -> bool:
        """True while the job goes on and its lock is held, which this renews."""
        if self._stop.is_set():
            return False
        status = self._ledger.status(job_id)
        if status.settled or status.state not in _GOING_ON:
            return False
        return self._ledger.lock(finish_lock(job_id), self._owner, HOLD_S)
