"""The ledger: which images of which jobs are done, and who may render the others.

Celery only delivers messages; whether a message's work may run is decided by a claim here. A claim
gives a lease with a fence: a number that grows with every claim of the shard. A worker that lost
the lease (it expired, because the worker died or hung) holds an old fence, and every change that it
asks for is refused. So a lost message is published again, a message delivered twice is refused at
the claim, and an image's completion is one bit.

A shard's way:

    waiting ─publish→ published ─claim→ leased ─release→ finished, or waiting again
                                           └─ lease expires → waiting again, or one by one

All times are the ledger's own clock; clocks of workers are never compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from jobs.ledger.types import (
    ALL_SHARDS,
    Beat,
    Claim,
    Event,
    Expired,
    JobState,
    JobStatus,
    Lease,
    NewJob,
    News,
    Shard,
    WebhookDelivery,
    WorkerInfo,
)
from jobs.task import Failure


class Ledger(Protocol):
    """All methods are atomic and may be called from any thread or machine. They raise
    `LedgerError` if the ledger cannot be reached or is full; nothing has then changed, or all of
    the call has. `NotFoundError` if a named job does not exist, where not said otherwise, and
    `DamagedLedgerError` if what the ledger holds of it is not as it must be.
    """

    # Jobs

    def create(self, job: NewJob, *, done: Iterable[int] = ()) -> bool:
        """Enter a job, active, with these images done already; True if it is new.

        False if it is there with the same plan in the same store: submitting again continues it (a
        cancelled job is made active again, and one that its budget has paused; `done` is added;
        webhook, priority, budget and submitter are the new ones).
        Raises `JobConflictError` if its plan or its store is another, `QuotaError` if its submitter
        would then have more images to do than its quota, and `ValueError` if one of `done` is no
        image of the job. A job of this submitter that goes on is not measured by the quota again.
        """
        ...

    def reopen(self, job_id: str, images: Iterable[int]) -> int:
        """Images that count as done are to do again, as they are gone from the store; how many.

        Those that are not done stay as they are. A job that was done is active again. Raises
        `ValueError` if one of them is no image of the job. Of many images each thousand is a step
        of its own; after a `LedgerError` in between, asking again does the rest.
        """
        ...

    def status(self, job_id: str) -> JobStatus: ...

    def jobs(self) -> list[JobStatus]:
        """All jobs, the latest first; those that cannot be read with the state UNKNOWN."""
        ...

    def job_ids(self, limit: int) -> list[str]:
        """Ids of that many jobs, the latest first."""
        ...

    def statuses(self, job_ids: Sequence[str]) -> list[JobStatus]:
        """Statuses of those of the jobs that there are, in one round trip; those that cannot be
        read with the state UNKNOWN.
        """
        ...

    def parts(self, status: JobStatus) -> list[JobStatus]:
        """A status for each model of a job of several, with the counts of its own; else the status
        itself. Empty if the job is gone meanwhile. status: of the whole job.
        """
        ...

    def states(self, job_ids: Sequence[str]) -> list[JobState | None]:
        """The state of each, None if there is no such job, UNKNOWN if it cannot be read: one cheap
        round trip.
        """
        ...

    def set_state(
        self,
        job_id: str,
        state: JobState,
        *,
        failed: int | None = None,
        reason: str | None = None,
    ) -> JobState:
        """Pause (PAUSED), go on (ACTIVE), cancel (CANCELLED) or end (DONE); the state after it.
        reason: why it is paused, kept until its state is another.

        A job that is done stays done, except by `reopen`; a cancelled one stays cancelled except by
        `create` and `retry`. Cancelling drops what is published and waiting; a worker that holds a
        lease learns it by `states` or a heartbeat, and releases it. DONE only if every image is
        settled, and, where `failed` is given, so many of them failed: the worker that writes a
        job's end says by it what was written, for images may be tried again meanwhile.
        Raises `ValueError` for UNKNOWN.
        """
        ...

    def note_error(self, job_id: str, error: str) -> None:
        """Keep why the job does not move on, until an image of it is done or it ends well.

        error: without secrets. Nothing happens if there is no such job.
        """
        ...

    def retry(self, job_id: str) -> int:
        """Failed images are to do again, and the job active; how many there are.

        A job that is done and has none stays done. Raises `QuotaError` as `create` does.
        """
        ...

    def forget(self, job_id: str, *, force: bool = True) -> bool:
        """Remove all of the job from the ledger; whether it is gone, as it is if there was none.

        force: also one that is neither done nor cancelled, which otherwise stays.
        """
        ...

    # Submitters

    @property
    def user(self) -> str:
        """Name under which the ledger's server is asked; empty where there are no users."""
        ...

    def quotas(self) -> dict[str, int]:
        """Images that each submitter may have to do at a time (`jobs.ledger.quotas`)."""
        ...

    def set_quota(self, submitter: str, images: int | None) -> None:
        """Let a submitter have so many images to do at a time; None for no quota.

        Jobs that are there go on. Raises `InputError` for a name or a number that cannot be.
        """
        ...

    # Publishing

    def publish(self, job_id: str, window: int, within: range = ALL_SHARDS) -> list[Shard]:
        """Shards to send messages for now, so that at most `window` are published or leased. Of all
        this, only the shards `within` are looked at.

        Those to be published again come first, then the next of the plan. Shards that are settled
        are passed over. Nothing while the job is not active.
        """
        ...

    def unclaimed(
        self, job_id: str, older_than_s: float, within: range = ALL_SHARDS
    ) -> list[Shard]:
        """Shards `within` that were published longer ago than that and not claimed: their message
        may be lost. They count as just published, so that the next caller does not get them too.
        Nothing while the job is not active.
        """
        ...

    # Rendering

    def claim(self, job_id: str, shard: int, owner: str) -> Claim:
        """Ask for a shard, on receipt of its message. Never raises `NotFoundError`."""
        ...

    def heartbeat(
        self, leases: Sequence[Lease], evaluated: Sequence[int], worked_s: Sequence[float] = ()
    ) -> list[Beat]:
        """Renew leases, each named once, in one round trip; what became of each.

        evaluated: model evaluations made under each lease since the last heartbeat. worked_s: the
        worker's seconds since then, shared among the leases that it held; none where it does not
        tell.
        """
        ...

    def settle(self, lease: Lease, done: Sequence[int], failed: Sequence[Failure] = ()) -> bool:
        """Record images of the shard, in batches as they finish; renews the lease.

        False, and nothing recorded, if the lease is lost. An image that is done is never failed
        again; a failed one may become done. Raises `ValueError`, and nothing is recorded, if an
        image is not of the shard.
        """
        ...

    def release(self, lease: Lease) -> int:
        """Give the shard back; how many of its images are still to do (0 if the lease is lost).

        If there are any and the job is not cancelled, the shard waits to be published again, at
        once and without counting a death.
        """
        ...

    # Reconciling

    def expire(self, limit: int = 100) -> list[Expired]:
        """End leases that ran out, of all jobs, and count a death for each, except in cancelled
        jobs.

        After `MOST_DEATHS` deaths a shard's claims give one image at a time, those that nobody
        died on first; an image whose workers died that often then is failed for good, with that
        reason (`given_up`).
        """
        ...

    def settled_jobs(self) -> list[str]:
        """Active or paused jobs whose every image is settled: their `done.json` is to be written,
        then `set_state(DONE)`.
        """
        ...

    def take_delivery(self, hold_s: float) -> WebhookDelivery | None:
        """The job's end that a webhook is to be told next, if one is due; nobody else gets it for
        so long.

        A job with a webhook has a delivery due from its end (done or cancelled) on, until
        `end_delivery` or until it goes on.
        """
        ...

    def end_delivery(self, delivery: WebhookDelivery, again_after_s: float | None = None) -> None:
        """The webhook was told, or never will be; or it is to be told again after so long.

        Nothing happens if the job went on since, nor if it is to be told again, but somebody else
        has taken or ended the delivery.
        """
        ...

    def lock(self, name: str, owner: str, ttl_s: float) -> bool:
        """Take or renew a lock for so long; False if another owner has it."""
        ...

    def unlock(self, name: str, owner: str) -> None:
        """Give a lock back; nothing happens if it is not held by this owner."""
        ...

    # Looking

    def pending(self, job_id: str, start: int, stop: int) -> list[int]:
        """Images of [start, stop) that are neither done nor failed."""
        ...

    def failures(self, job_id: str, limit: int | None = None) -> list[Failure]:
        """Failures by index, at most the first so many."""
        ...

    def shard_ends(self, job_id: str) -> list[int]:
        """Index after the last image of each shard, as `NewJob` has them."""
        ...

    def events(self, job_id: str, after: str = "0", limit: int = 1000) -> list[Event]:
        """Events later than the one of that id, oldest first. Only the last few thousand of a job
        are kept.
        """
        ...

    def news(self, after: str | None = None, limit: int = 1000) -> list[News]:
        """Events of all jobs later than the one of that id, oldest first; without an id, the last
        so many. Ids are those among the news, not those of `events`. Only the last few thousand are
        kept.
        """
        ...

    def worker_seen(self, worker: WorkerInfo, ttl_s: float) -> None:
        """Report a worker; it is listed for so long."""
        ...

    def worker_gone(self, name: str) -> None: ...

    def workers(self) -> list[WorkerInfo]:
        """By name; one that cannot be read with neither model nor figures."""
        ...

    def time_s(self) -> float:
        """Unix time by the ledger's own clock."""
        ...

    def eviction(self) -> str | None:
        """A warning for people if the server is set up to delete what it has no room for, with jobs
        among it; None if it is not, or does not say.
        """
        ...

    def ping(self) -> None:
        """Raise `LedgerError` if the ledger does not answer."""
        ...
