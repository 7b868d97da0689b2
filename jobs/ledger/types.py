"""Values that a ledger takes and gives: jobs, shards, leases, workers, events."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from jobs.budget import Budget
from jobs.errors import DamagedLedgerError, JobConflictError
from jobs.task import Failure

LEASE_S = 60.0
"""How long a claim lasts without a heartbeat."""

MOST_DEATHS = 3
"""Workers that may die on a shard before its images run one by one, and then on one image before
it is given up."""

MOST_IMAGES = 10_000
"""Images of a shard at most: a claim looks at each of them in one atomic step."""


ALL_SHARDS = range(2**31)

BY_BUDGET = "budget"
"""Why a job is paused whose budget is used up."""


class JobState(enum.StrEnum):
    ACTIVE = "active"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    DONE = "done"
    UNKNOWN = "unknown"  # never in a ledger: its entry there cannot be read by this version


@dataclass(frozen=True)
class ModelShards:
    """Shards of a job that follow each other, and are of one model. shards, images: how many."""

    name: str
    shards: int
    images: int


@dataclass(frozen=True)
class NewJob:
    """A job as it is entered. Raises `ValueError` if shards, models or priority are not as said
    here.

    job_id: also its folder in the store. plan: sha256 of the plan, 64 hex digits. store: where its
    folder is (`jobs.storage.open_store`); two jobs of one id must agree in both, to the letter.
    model: a name of the workers' model list; of a job of several, all, for people. models: those
    of a job of several, in the order of its shards. shard_ends: for each shard the index after its
    last image, growing; the last is the number of images; no shard has more than `MOST_IMAGES`.
    evaluations: of the model, over all images. priority: weight against other jobs, 1 to 100.
    webhook: URL told when the job ends, or None. quality: of jpeg and webp images. budget: after
    which it rests. submitter: whose quota counts its images; empty for nobody's.
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
    models: tuple[ModelShards, ...] = ()
    budget: Budget | None = None
    submitter: str = ""

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
        for shards, images in places_of(self.models):
            last = shards.stop - 1
            if not 0 <= last < len(self.shard_ends) or self.shard_ends[last] != images.stop:
                raise ValueError(f"the models of {self.job_id} do not end where shards do")

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
    at least one shard was held, until evaluations were last told. worker_s: seconds of all workers
    together, as far as they told them. created_s, ended_s: Unix
    time by the ledger's clock; ended_s is None until the job is done or cancelled. error: why a
    shard of it failed as a whole, with no image done since. With the state UNKNOWN all but the name
    is empty, and error says why.

    reason: why it is paused, where nobody paused it: `BY_BUDGET`. submitter: the user of the ledger
    who entered it last; empty where an older version did.
    models: of a job of several, as `NewJob` has them. A part of such a job has a status too (see
    `Ledger.parts`); first_shard: of that part.
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
    models: tuple[ModelShards, ...] = ()
    first_shard: int = 0
    worker_s: float = 0.0
    budget: Budget | None = None
    reason: str | None = None
    submitter: str = ""

    @property
    def to_do(self) -> int:
        """Images that are neither done nor failed; none of a job that is cancelled."""
        if self.state is JobState.CANCELLED:
            return 0
        return max(0, self.total - self.done - self.failed)

    @property
    def spent(self) -> str | None:
        """The limit of its budget that is reached, for people; None while none is."""
        if self.budget is None:
            return None
        return self.budget.spent(worker_s=self.worker_s, images=self.done)

    @property
    def settled(self) -> bool:
        """True if every image is done or failed."""
        return self.done + self.failed >= self.total

    @property
    def own_shards(self) -> range:
        """Numbers of its shards."""
        return range(self.first_shard, self.first_shard + self.shards)

    def model_of(self, shard: int) -> str:
        """The model of a shard. Raises `DamagedLedgerError` if no model has it."""
        if not self.models:
            return self.model
        for part, (shards, _) in zip(self.models, places_of(self.models), strict=True):
            if shard in shards:
                return part.name
        raise DamagedLedgerError(f"{self.job_id}: shard {shard} is of none of its models")


class PartCounts(NamedTuple):
    """Counts of a part of a job that `JobStatus` has, too."""

    waiting: int
    published: int
    leased: int
    done: int
    failed: int


def places_of(models: Sequence[ModelShards]) -> list[tuple[range, range]]:
    """Shards and images of each model."""
    places, shards, images = [], 0, 0
    for part in models:
        places.append((range(shards, shards + part.shards), range(images, images + part.images)))
        shards, images = shards + part.shards, images + part.images
    return places


def part_of(status: JobStatus, number: int, counts: PartCounts) -> JobStatus:
    """Status of a part of a job of several models. Evaluations are not told apart."""
    own = status.models[number]
    shards, _ = places_of(status.models)[number]
    return replace(
        status,
        **counts._asdict(),
        model=own.name,
        models=(),
        total=own.images,
        shards=own.shards,
        first_shard=shards.start,
    )


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
class WebhookDelivery:
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

    isolated: too many workers died on the shard, so this is one image of it, and nothing else is to
    run in the process: its next death is blamed on this image.
    """

    answer: ClaimAnswer
    lease: Lease | None = None
    indices: tuple[int, ...] = ()
    attempt: int = 0
    isolated: bool = False


class Beat(enum.StrEnum):
    """Answer to a heartbeat about one lease."""

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
    """A worker as it reports itself. device: such as cuda:0. seen_s: Unix time of its last report
    by the ledger's clock, which fills it in; None where an older version took the report. rows: of
    its last batch, padding included, and rows_used, those that held an image; None before the first
    one, and of older versions. images: finished since it began; images_per_s: of the last minute,
    None while it rests or not enough is known.
    """

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
    seen_s: float | None = field(default=None, compare=False)
    rows: int | None = None
    rows_used: int | None = None
    images_per_s: float | None = None

    @property
    def serves(self) -> bool:
        """True if it takes shards of its model."""
        return not self.state.startswith(("stopped", "draining", "unknown"))


@dataclass(frozen=True)
class Event:
    """Something that happened to a job; `values` are strings. kind: created, claimed, settled,
    released, expired, failed, paused, active, cancelled, retried, reopened, done.

    One `settled` is told for each call of `Ledger.settle` that made images done: its `images` are
    those, as `jobs.ledger.spans` writes them.
    """

    id: str
    time_s: float
    kind: str
    values: Mapping[str, str] = field(default_factory=dict)


class News(NamedTuple):
    """An event among those of all jobs."""

    job_id: str
    event: Event


def event_order(id: str) -> tuple[int, int]:
    """Numbers that events are ordered by. Raises `ValueError` if this is no id of an event."""
    if not re.fullmatch(r"\d+(-\d+)?", id, re.ASCII):
        raise ValueError(f"{id!r} is no id of an event")
    time, _, number = id.partition("-")
    return int(time), int(number or 0)


def given_up(index: int) -> Failure:
    """The failure of an image that too many workers died on.

    The ledger does not know the plan: name and prompt are empty and the seed is 0, for the
    reader to fill in.
    """
    reason = f"{MOST_DEATHS} workers died while rendering it"
    return Failure(index=index, name="", prompt="", seed=0, reason=reason, attempts=MOST_DEATHS)


class Place(NamedTuple):
    """Values that two jobs of one id must agree in, as in `NewJob`."""

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
    """Status that is listed of a job whose entry this version cannot read."""
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
