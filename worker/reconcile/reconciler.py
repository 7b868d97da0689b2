"""Keeps jobs moving, whatever died: one worker at a time does a round, every few seconds.

Every step may be done twice: the ledger refuses what is not so any more.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from jobs.errors import DamagedLedgerError, SdbatchError
from jobs.formatting import agreeing, counted
from jobs.ledger.base import Ledger
from jobs.ledger.types import BY_BUDGET, JobState, JobStatus
from jobs.queue.messages import ShardQueue
from jobs.queue.publish import publish, window
from jobs.storage import Store
from worker.reconcile.finalize import JobFinalizer
from worker.reconcile.galleries import GalleryRefresher
from worker.reconcile.webhooks import Notifier

log = logging.getLogger(__name__)

EVERY_S = 2.0
LOCK_S = 10.0  # a reconciler that hangs for longer loses its turn
LOST_AFTER_S = 30.0
"""A shard published so long ago, with an empty queue, has no message any more."""

MISSED_AFTER_S = 600.0
"""A shard published so long ago may have none, if the queue has fewer messages than shards are
published: other jobs' messages keep it from ever being empty.
"""


class Reconciler:
    """owner: this worker. slots: shards it renders at a time. notifier: tells webhooks of the ends
    of jobs; without it, nobody is told.
    """

    def __init__(
        self,
        ledger: Ledger,
        queue: ShardQueue,
        open_store: Callable[[str], Store],
        *,
        owner: str,
        slots: int,
        notifier: Notifier | None = None,
    ) -> None:
        self._ledger = ledger
        self._queue = queue
        self._owner = owner
        self._slots = slots
        self._notifier = notifier
        self._finalizer = JobFinalizer(ledger, open_store, owner=owner)
        self._galleries = GalleryRefresher(ledger, open_store, owner=owner)

    def run(self, stop: threading.Event, every_s: float = EVERY_S) -> None:
        """Rounds until stop is set, `every_s` apart on average; for a thread of its own.

        At regular times the same one of two waiting workers could get every message, even of a
        shard that it cannot render and gives back.
        """
        while not stop.wait(every_s * random.uniform(0.5, 1.5)):
            try:
                self.round()
            except SdbatchError as error:
                log.warning("reconciling failed, trying again: %s", error)
            except Exception:  # without this thread, no job of any worker would move on
                log.exception("reconciling failed, trying again")
        self._galleries.stop()
        self._finalizer.wait()

    def round(self) -> None:
        """One round, if no other worker is at it. Raises `LedgerError`."""
        cancelled: list[JobStatus] = []
        if self._ledger.lock("reconcile", self._owner, LOCK_S):
            for expired in self._ledger.expire():
                log.warning(
                    "job %s shard %d: worker %s is gone (death %d)",
                    expired.shard.job_id,
                    expired.shard.number,
                    expired.owner,
                    expired.deaths,
                )
            jobs = self._ledger.jobs()
            resting = self._pause_spent(jobs)
            self._publish([job for job in jobs if job.job_id not in resting])
            cancelled = [job for job in jobs if job.state is JobState.CANCELLED]
            self._galleries.round(jobs)
        self._finalizer.round(cancelled)
        if self._notifier is not None:
            self._notifier.round()

    def _pause_spent(self, jobs: Sequence[JobStatus]) -> set[str]:
        """Pauses active jobs whose budget is used up while there is more to do; their names."""
        resting = set()
        for job in jobs:
            if job.state is JobState.ACTIVE and not job.settled and job.spent is not None:
                resting.add(job.job_id)
                with self._apart(job):
                    now = self._ledger.status(job.job_id)  # it may have been given a larger one
                    if now.state is JobState.ACTIVE and now.spent is not None:
                        self._ledger.set_state(job.job_id, JobState.PAUSED, reason=BY_BUDGET)
                        log.info("job %s rests: its budget of %s is used up", now.job_id, now.spent)
        return resting

    def _publish(self, jobs: Sequence[JobStatus]) -> None:
        active: list[JobStatus] = []  # those of several models by their parts
        for job in jobs:
            if job.state is JobState.ACTIVE and not job.settled:
                with self._apart(job):
                    active += [part for part in self._ledger.parts(job) if not part.settled]
        workers = Counter(worker.model for worker in self._ledger.workers())
        published: Counter[str] = Counter()
        for job in active:
            slots = self._slots * max(1, workers[job.model])
            with self._apart(job):
                sent = publish(self._ledger, self._queue, job, window(job, active, slots))
                published[job.model] += job.published + sent
        for job in active:
            if job.published:
                with self._apart(job):
                    self._send_again(job, published)

    @contextlib.contextmanager
    def _apart(self, job: JobStatus) -> Iterator[None]:
        """Report damage of a job, or of its model's queue, with that job; the other jobs go on."""
        try:
            yield
        except DamagedLedgerError as error:
            if job.error != str(error):  # it was not told yet
                log.error("job %s cannot go on: %s", job.job_id, error)
                with contextlib.suppress(DamagedLedgerError):
                    self._ledger.note_error(job.job_id, str(error))

    def _send_again(self, job: JobStatus, published: Mapping[str, int]) -> None:
        """Shards of a job or part whose message is lost, or seems to be: a claim refuses the second
        of two.

        published: shards by model. As many messages as that are never added to, so that a queue
        which nobody reads does not grow.
        """
        length = self._queue.length(job.model)
        if length < published[job.model]:
            after_s = MISSED_AFTER_S if length else LOST_AFTER_S
            shards = self._ledger.unclaimed(job.job_id, after_s, job.own_shards)
            if shards:
                lost = counted(len(shards), "message")
                were = agreeing(len(shards), "was", "were")
                log.warning("job %s: %s %s lost", job.job_id, lost, were)
                self._queue.send(job.model, shards)
