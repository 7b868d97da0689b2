"""Keeps jobs moving, whatever died: one worker at a time does a round, every few seconds.

Every step may be done twice: the ledger refuses what is not so any more.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from jobs.errors import LedgerError, NotFoundError, SdbatchError
from jobs.ledger.base import JobState, JobStatus, Ledger
from jobs.plan import PlanReader
from jobs.publish import publish, window
from jobs.queue import ShardQueue
from jobs.records import Failure, write_failures
from jobs.storage import JobKeys, Store
from worker.notify import Notifier
from worker.tail import write_tail

log = logging.getLogger(__name__)

EVERY_S = 2.0
LOCK_S = 10.0  # a reconciler that hangs for longer loses its turn
LOST_AFTER_S = 30.0  # a shard published so long ago, with an empty queue, has no message any more
FINISHING_S = 600.0  # longest time to write the gallery of a job before another worker tries


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
        lost_after_s: float = LOST_AFTER_S,
        notifier: Notifier | None = None,
    ) -> None:
        self._ledger = ledger
        self._queue = queue
        self._open_store = open_store
        self._owner = owner
        self._slots = slots
        self._lost_after_s = lost_after_s
        self._notifier = notifier

    def run(self, stop: threading.Event, every_s: float = EVERY_S) -> None:
        """Rounds until stop is set; for a thread of its own."""
        while not stop.wait(every_s):
            try:
                self.round()
            except SdbatchError as error:
                log.warning("reconciling failed, trying again: %s", error)

    def round(self) -> None:
        """One round, if no other worker is at it. Raises `LedgerError`."""
        if self._ledger.lock("reconcile", self._owner, LOCK_S):
            for expired in self._ledger.expire():
                log.warning(
                    "job %s shard %d: worker %s is gone (death %d)",
                    expired.shard.job_id,
                    expired.shard.number,
                    expired.owner,
                    expired.deaths,
                )
            self._publish()
        for job_id in self._ledger.settled_jobs():
            self._finish(job_id)
        if self._notifier is not None:
            self._notifier.round()

    def _publish(self) -> None:
        jobs = self._ledger.jobs()
        active = [job for job in jobs if job.state is JobState.ACTIVE and not job.settled]
        workers = Counter(worker.model for worker in self._ledger.workers())
        for job in active:
            slots = self._slots * max(1, workers[job.model])
            publish(self._ledger, self._queue, job, window(job, active, slots))
        self._send_again(active)

    def _send_again(self, jobs: Sequence[JobStatus]) -> None:
        """Shards whose message is lost: their queue is empty, and nobody claimed them."""
        for job in jobs:
            if job.published and self._queue.length(job.model) == 0:
                shards = self._ledger.unclaimed(job.job_id, self._lost_after_s)
                if shards:
                    log.warning("job %s: %d messages were lost", job.job_id, len(shards))
                    self._queue.send(job.model, shards)

    def _finish(self, job_id: str) -> None:
        """Writes the gallery, the failures and `done.json` of a job whose images are settled."""
        if not self._ledger.lock(f"finish:{job_id}", self._owner, FINISHING_S):
            return
        try:
            status = self._ledger.status(job_id)
            keys, store = JobKeys(job_id), self._open_store(status.store)
            failures = _with_prompts(self._ledger.failures(job_id), PlanReader(store, keys))
            write_failures(store, keys, failures)
            write_tail(store, keys, failures, {"name": status.model})
            self._ledger.set_state(job_id, JobState.DONE)
            log.info("job %s is done", job_id)
        except LedgerError:
            raise
        except SdbatchError as error:
            log.error("job %s cannot be finished yet: %s", job_id, error)
        finally:
            self._ledger.unlock(f"finish:{job_id}", self._owner)


def _with_prompts(failures: Sequence[Failure], plan: PlanReader) -> list[Failure]:
    """The ledger gives images up without knowing the plan (`jobs.ledger.base.given_up`)."""
    filled = []
    for failure in failures:
        if not failure.name:
            try:
                (task,) = plan.tasks([failure.index])
            except NotFoundError as error:
                log.warning("an image that failed has no prompt: %s", error)
            else:
                failure = replace(
                    failure, name=task.name, prompt=task.prompt, seed=task.sampling.seed
                )
        filled.append(failure)
    return filled
