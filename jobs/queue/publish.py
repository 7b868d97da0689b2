"""Messages for the shards that the ledger wants rendered: a bounded window of them per job."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.ledger.base import Ledger
from jobs.ledger.types import JobState, JobStatus
from jobs.queue.messages import ShardQueue

LEAST_WINDOW = 4
"""Shards published or rendering of a job, whatever its priority."""


def window(status: JobStatus, jobs: Sequence[JobStatus], slots: int) -> int:
    """How many shards of a job of one model, or of such a part of a job, may be published or
    rendering.

    jobs: all such jobs and parts of the ledger. slots: shards that the workers of the job's model
    render at a time. Twice as many are out, so that no worker waits; jobs that are active at the
    same time share them by priority, so that an urgent job does not wait behind a long one.
    """
    rivals = [
        job.priority
        for job in jobs
        if job.model == status.model and job.state is JobState.ACTIVE and not job.settled
    ]
    share = status.priority / max(status.priority, sum(rivals))
    return max(LEAST_WINDOW, round(2 * slots * share))


def publish(ledger: Ledger, queue: ShardQueue, status: JobStatus, limit: int) -> int:
    """Fills the window of a job or part; how many messages were sent. Raises `LedgerError`.

    A process that dies between the two steps leaves shards without a message; they are found as
    unclaimed later.
    """
    shards = ledger.publish(status.job_id, limit, status.own_shards)
    if shards:
        queue.send(status.model, shards)
    return len(shards)
