"""The ledger: which images of which jobs are done, and who may render the others.

Celery only delivers messages; whether a message's work may run is decided by a claim here. A claim
gives a lease with a fence: a number that grows with every claim of the shard. Whoever lost the
lease (it expired, because its worker died or hung) holds an old fence, and every change that it
asks for is refused. So a lost message is published again, a message delivered twice is refused at
the claim, and an image's completion is one bit.

A shard's way:

    waiting ─publish→ published ─claim→ leased ─release→ finished, or waiting again
                                           └─ lease expires → waiting again, or one by one

All times are the ledger's own clock; clocks of workers are never compared.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from jobs.errors import DamagedLedgerError, JobConflictError
from jobs.records import Failure

LEASE_S = 60.0
"""How long a claim lasts without a heartbeat."""

MOST_DEATHS = 3
"""Workers that may die on a shard before its images run one by one, and then on one image before
it is given up."""


MOST_IMAGES = 10_000
"""Images of a shard at most: a claim looks at each of them in one atomic step."""


class JobState(enum.StrEnum):
    ACTIVE = "active"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    DONE = "done"
    UNKNOWN = "unknown"  # never in a ledger: its entry there cannot be read by this version


@dataclass(frozen=True)
class NewJob:
    """A job as it is entered. Raises `ValueError` if shards or priority are not as said here.

    job_id: also its folder in the store. plan: sha256 of the plan, 64 hex digits. store: where its
    folder is (`jobs.storage.open_store`); two jobs of one id must agree in both, to the letter.
    model: a name of the workers' model list. shard_ends: for each shard the index after its last
    image, growing; the last is the number of images; no shard has more than `MOST_IMAGES`.
    evaluations: of the model, over all images. priority: weight against other jobs, 1 to 100.
    webhook: URL told when the job ends, or None. quality: of jpeg and webp images.
    """

    job_id: str
    name: str
    plan: str
    store: str
    model: str
    shard_ends: Sequence[int]
    evaluations: int
    priority: int = 10
    webhook: str | None = None
    quality: int = 95

    def __post_init__(self) -> None:
        if not 1 <= self.priority <= 100:
            raise ValueError(f"a job's priority is 1 to 100, not {self.priority}")
        start = 0
        for number, stop in enumerate(self.shard_ends):
            if not start < stop <= start + MOST_IMAGES:
                raise ValueError(
                    f"shard {number} of {self.job_id} has images {start} to {stop}: "
                    f"a shard has 1 to {MOST_IMAGES} images"
                )
            start = stop

    @property
    def place(self) -> Place:
        return Place(self.plan, self.store)

    @property
    def total(self) -> int:
        """Images."""
        return self.shard_ends[-1] if self.shard_ends else 0


@dataclass(frozen=True)
class JobStatus:
    """Where a job stands; read in constant time, whatever the job's size.

    done, failed: images. published, leased, waiting: shards whose message is out, that a worker
    holds, and that wait (not yet published, or to be published again). evaluations: all of the
    job's; evaluated: those that were made, also by workers that died. rendering_s: seconds in which
    at least one shard was held, until evaluations were last told. created_s, ended_s: Unix
    time by the ledger's clock; ended_s is None until the job is done or cancelled. error: why a
    shard of it failed as a whole, with no image done since. With the state UNKNOWN all but the name
    is empty, and error says why.
    """

    job_id: str
    name: str
    state: JobState
    plan: str
    store: str
    model: str
    priority: int
    webhook: str | None
    quality: int
    total: int
    done: int
    failed: int
    shards: int
    waiting: int
    published: int
    leased: int
    evaluations: int
    evaluated: int
    rendering_s: float
    created_s: float
    ended_s: float | None
    error: str | None = None

    @property
    def settled(self) -> bool:
        """Whether every image is done or failed."""
        return self.done + self.failed >= self.total


@dataclass(frozen=True)
class Shard:
    """Images [start, stop) of a job: what a message names."""

    job_id: str
    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class Lease:
    """The right to render a shard's images until it is released or `Ledger.expire` ends it: a
    lease that ran out may still be renewed as long as nobody ended it. fence: grows with each claim
    of the shard, also when the job was forgotten in between; owner: the worker.
    """

    job_id: str
    shard: int
    fence: int
    owner: str


@dataclass(frozen=True)
class Notice:
    """A job's end that its webhook is to be told. ended_s: which end, as in `JobStatus`; attempt:
    counted from 1, this one included.
    """

    job_id: str
    ended_s: float
    attempt: int


class ClaimAnswer(enum.StrEnum):
    RUN = "run"
    BUSY = "busy"  # somebody else holds it
    DONE = "done"  # nothing is left to do
    PAUSED = "paused"  # it is published again when the job goes on
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"  # no such job or shard


@dataclass(frozen=True)
class Claim:
    """The answer to a claim. With RUN: the lease, the images still to do, and how many claims the
    shard has had, this one included.

    alone: too many workers died on the shard, so this is one image of it, and nothing else is to
    run in the process: its next death is blamed on this image.
    """

    answer: ClaimAnswer
    lease: Lease | None = None
    indices: tuple[int, ...] = ()
    attempt: int = 0
    alone: bool = False


class Beat(enum.StrEnum):
    """What a heartbeat learns of a lease."""

    HELD = "held"
    LOST = "lost"  # stop: somebody else may be at it
    CANCELLED = "cancelled"  # stop, and release


@dataclass(frozen=True)
class Expired:
    """A lease that ran out. images_failed: given up, because too many workers died on them."""

    shard: Shard
    owner: str
    deaths: int
    images_failed: tuple[int, ...] = ()


@dataclass(frozen=True)
class WorkerInfo:
    """A worker as it reports itself. device: such as cuda:0; doing: for people."""

    name: str
    host: str
    pid: int
    device: str
    model: str
    leases: int
    images: int
    state: str
    """starting, idle, busy, draining, stopped taking work (with why), or unknown if its entry
    cannot be read.
    """

    @property
    def serves(self) -> bool:
        """Whether it takes shards of its model."""
        return not self.state.startswith(("stopped", "draining", "unknown"))


@dataclass(frozen=True)
class Event:
    """Something that happened to a job; `values` are strings. kind: created, claimed, released,
    expired, failed, paused, active, cancelled, retried, reopened, done.
    """

    id: str
    time_s: float
    kind: str
    values: Mapping[str, str] = field(default_factory=dict)


def event_order(id: str) -> tuple[int, int]:
    """What events are ordered by. Raises `ValueError` if this is no id of an event."""
    if not re.fullmatch(r"\d+(-\d+)?", id, re.ASCII):
        raise ValueError(f"{id!r} is no id of an event")
    time, _, number = id.partition("-")
    return int(time), int(number or 0)


def given_up(index: int) -> Failure:
    """The failure of an image that too many workers died on.

    The ledger does not know the plan: name and prompt are empty and the seed is 0, for whoever
    reads it to fill in.
    """
    reason = f"{MOST_DEATHS} workers died while rendering it"
    return Failure(index=index, name="", prompt="", seed=0, reason=reason, attempts=MOST_DEATHS)


class Place(NamedTuple):
    """What two jobs of one id must agree in, as in `NewJob`."""

    plan: str
    store: str


def check_same(job_id: str, known: Place, given: Place) -> None:
    """known: of the job of this id in the ledger. Raises `JobConflictError` if they differ."""
    if given.plan != known.plan:
        raise JobConflictError(
            f"{job_id} is in the ledger with another plan "
            f"({known.plan[:12]}…, not {given.plan[:12]}…); choose another name for the job"
        )
    if given.store != known.store:
        raise JobConflictError(
            f"{job_id} is in the ledger with its folder in {known.store}, not in {given.store}; "
            f"go on with --store {known.store}, choose another name for the job, or take it out of "
            f"the ledger first: sdbatch forget {job_id}"
        )


def check_images(indices: Iterable[int], total: int) -> list[int]:
    """These as a list. Raises `ValueError` if one of them is not in [0, total)."""
    checked = list(indices)
    for index in checked:
        if not 0 <= index < total:
            raise ValueError(f"image {index} is not of this job, which has {total}")
    return checked


def unreadable(job_id: str, why: str) -> JobStatus:
    """What is listed of a job whose entry this version cannot read."""
    return JobStatus(
        job_id=job_id,
        name="",
        state=JobState.UNKNOWN,
        plan="",
        store="",
        model="",
        priority=0,
        webhook=None,
        quality=0,
        total=0,
        done=0,
        failed=0,
        shards=0,
        waiting=0,
        published=0,
        leased=0,
        evaluations=0,
        evaluated=0,
        rendering_s=0.0,
        created_s=0.0,
        ended_s=None,
        error=f"its entry in the ledger cannot be read: {why}",
    )


def check_settable(state: JobState) -> None:
    """Raises `ValueError` if no job can be brought to this state."""
    if state is JobState.UNKNOWN:
        raise ValueError("unknown is no state that a job can be brought to")


def check_readable(status: JobStatus) -> JobStatus:
    """The same. Raises `DamagedLedgerError` if its entry could not be read."""
    if status.state is JobState.UNKNOWN:
        raise DamagedLedgerError(
            f"{status.job_id}: {status.error}; a newer version may have written it. Else take it "
            f"out (sdbatch forget {status.job_id} --force) and enter it again from its folder "
            "(sdbatch resume)"
        )
    return status


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
        cancelled job is made active again, `done` is added, webhook and priority are the new ones).
        Raises `JobConflictError` if its plan or its store is another, and `ValueError` if one of
        `done` is no image of the job.
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

    def states(self, job_ids: Sequence[str]) -> list[JobState | None]:
        """The state of each, None if there is no such job, UNKNOWN if it cannot be read: one cheap
        round trip.
        """
        ...

    def set_state(self, job_id: str, state: JobState, *, failed: int | None = None) -> JobState:
        """Pause (PAUSED), go on (ACTIVE), cancel (CANCELLED) or end (DONE); the state after it.

        A job that is done stays done, except by `reopen`; a cancelled one stays cancelled except by
        `create` and `retry`. Cancelling drops what is published and waiting; whoever holds a lease
        learns it by `states` or a heartbeat, and releases it. DONE only if every image is settled,
        and, where `failed` is given, so many of them failed: whoever writes a job's end says by it
        what was written, for images may be tried again meanwhile.
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

        A job that is done and has none stays done.
        """
        ...

    def forget(self, job_id: str, *, force: bool = True) -> bool:
        """Remove all of the job from the ledger; whether it is gone, as it is if there was none.

        force: also one that is neither done nor cancelled, which otherwise stays.
        """
        ...

    # Publishing

    def publish(self, job_id: str, window: int) -> list[Shard]:
        """Shards to send messages for now, so that at most `window` are published or leased.

        Those to be published again come first, then the next of the plan. Shards that are settled
        are passed over. Nothing while the job is not active.
        """
        ...

    def unclaimed(self, job_id: str, older_than_s: float) -> list[Shard]:
        """Shards published longer ago than that and not claimed: their message may be lost. They
        count as published anew, so that the next caller does not get them too. Nothing while the
        job is not active.
        """
        ...

    # Rendering

    def claim(self, job_id: str, shard: int, owner: str) -> Claim:
        """Ask for a shard, on receipt of its message. Never raises `NotFoundError`."""
        ...

    def heartbeat(self, leases: Sequence[Lease], evaluated: Sequence[int]) -> list[Beat]:
        """Renew leases, each named once, in one round trip; what became of each.

        evaluated: model evaluations made under each lease since the last heartbeat.
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

    def take_notice(self, hold_s: float) -> Notice | None:
        """The job's end that a webhook is to be told next, if one is due; nobody else gets it for
        so long.

        A job with a webhook has a notice from its end (done or cancelled) on, until `end_notice`
        or until it goes on.
        """
        ...

    def end_notice(self, notice: Notice, again_after_s: float | None = None) -> None:
        """The webhook was told, or never will be; or it is to be told again after so long.

        Nothing happens if the job went on since, nor if it is to be told again, but somebody else
        has taken or ended the notice.
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

    def failures(self, job_id: str) -> list[Failure]:
        """By index."""
        ...

    def events(self, job_id: str, after: str = "0", limit: int = 1000) -> list[Event]:
        """Events later than the one of that id, oldest first. Only the last few thousand of a job
        are kept.
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
