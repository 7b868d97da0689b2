"""A job of the memory ledger: its images and shards, as plain data."""

from __future__ import annotations

import bisect
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from jobs.ledger.types import Event, JobState, JobStatus, Lease, NewJob, PartCounts, Shard
from jobs.task import Failure

EVENTS = 2000

_TO_DO, _DONE, _FAILED = 0, 1, 2


@dataclass
class Held:
    """A claim of a shard. single: the one image it is for, or None; expires_s: when it runs out."""

    lease: Lease
    single: int | None
    expires_s: float


@dataclass
class MemoryJob:
    """Shards of a job that is not cancelled and have images to do are in exactly one of waiting,
    published and held. deaths are of shards, image_deaths of images that ran alone. notice_s: when
    the webhook is to be told of the job's end; notices: how often that was tried. held_s: how long
    at least one shard was held before held_since_s.
    """

    new: NewJob
    created_s: float
    state: JobState = JobState.ACTIVE
    ended_s: float | None = None
    notice_s: float | None = None
    notices: int = 0
    error: str | None = None
    reason: str | None = None
    evaluated: int = 0
    rendering_s: float = 0.0
    worker_s: float = 0.0
    done: int = 0
    failures: dict[int, Failure] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)
    published: dict[int, float] = field(default_factory=dict)
    held: dict[int, Held] = field(default_factory=dict)
    held_s: float = 0.0
    held_since_s: float = 0.0
    attempts: Counter[int] = field(default_factory=Counter)
    deaths: Counter[int] = field(default_factory=Counter)
    image_deaths: Counter[int] = field(default_factory=Counter)
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=EVENTS))

    def __post_init__(self) -> None:
        self._images = bytearray(self.new.total)

    @property
    def settled(self) -> bool:
        return self.done + len(self.failures) >= self.new.total

    def shard(self, number: int) -> Shard | None:
        ends = self.new.shard_ends
        if not 0 <= number < len(ends):
            return None
        return Shard(self.new.job_id, number, ends[number - 1] if number else 0, ends[number])

    def status(self) -> JobStatus:
        new = self.new
        return JobStatus(
            job_id=new.job_id,
            name=new.name,
            state=self.state,
            plan=new.plan,
            store=new.store,
            model=new.model,
            priority=new.priority,
            webhook=new.webhook,
            quality=new.quality,
            total=new.total,
            done=self.done,
            failed=len(self.failures),
            shards=len(new.shard_ends),
            waiting=len(self.waiting),
            published=len(self.published),
            leased=len(self.held),
            evaluations=new.evaluations,
            evaluated=self.evaluated,
            rendering_s=self.rendering_s,
            created_s=self.created_s,
            ended_s=self.ended_s,
            error=self.error,
            models=new.models,
            worker_s=self.worker_s,
            budget=new.budget,
            reason=self.reason,
            submitter=new.submitter,
        )

    def counts(self, shards: range, images: range) -> PartCounts:
        """Counts of a part of the job."""
        within = self._images[images.start : images.stop]
        return PartCounts(
            *(sum(n in shards for n in some) for some in (self.waiting, self.published, self.held)),
            *(within.count(state) for state in (_DONE, _FAILED)),
        )

    def end(self, now_s: float) -> None:
        """It is done or cancelled."""
        self.ended_s = now_s
        self.waiting.clear()
        self.published.clear()
        if self.new.webhook:
            self.notice_s, self.notices = now_s, 0

    def go_on(self) -> None:
        """It is active again."""
        self.state, self.ended_s, self.notice_s = JobState.ACTIVE, None, None
        self.reason = None
        self.let_open_wait()

    # Images

    def to_do(self, start: int, stop: int) -> list[int]:
        """Images of [start, stop) that are neither done nor failed."""
        return [i for i in range(start, stop) if self._images[i] == _TO_DO]

    def finish(self, index: int) -> bool:
        """False if the image is done already."""
        if self._images[index] == _DONE:
            return False
        self._images[index] = _DONE
        self.done += 1
        self.failures.pop(index, None)
        self.image_deaths.pop(index, None)
        return True

    def fail(self, failure: Failure) -> bool:
        """False if the image is done, or failed before; its failure then is the new one."""
        before = self._images[failure.index]
        if before == _DONE:
            return False
        self._images[failure.index] = _FAILED
        self.failures[failure.index] = failure
        self.image_deaths.pop(failure.index, None)
        return before == _TO_DO

    def reopen(self, indices: Iterable[int]) -> int:
        """Done images are to do again; how many of these were done."""
        before = self.done
        for index in indices:
            if self._images[index] == _DONE:
                self._images[index] = _TO_DO
                self.done -= 1
        return before - self.done

    def unfail(self) -> int:
        """Failed images are to do again; how many."""
        count = len(self.failures)
        for index in self.failures:
            self._images[index] = _TO_DO
        self.failures.clear()
        return count

    # Shards

    def hold(self, held: Held, now_s: float) -> None:
        if not self.held:
            self.held_since_s = now_s
        self.held[held.lease.shard] = held

    def let_go(self, number: int, now_s: float) -> None:
        del self.held[number]
        if not self.held:
            self.held_s += now_s - self.held_since_s

    def count(self, evaluated: int, worked_s: float, now_s: float) -> None:
        """Evaluations that were made under a lease, and the worker's seconds."""
        self.evaluated += evaluated
        self.worker_s += worked_s
        if evaluated:
            self.rendering_s = self.held_s + now_s - self.held_since_s

    def left(self, number: int) -> list[int]:
        """Images of the shard that are to do; if none are, it need not be rendered any more."""
        shard = self.shard(number)
        assert shard is not None
        indices = self.to_do(shard.start, shard.stop)
        if not indices:
            self.waiting.discard(number)
            self.published.pop(number, None)
        return indices

    def let_open_wait(self) -> None:
        """Every shard waits that has images to do, is not published and not held."""
        first = self._images.find(_TO_DO)
        while first >= 0:
            number = bisect.bisect_right(self.new.shard_ends, first)
            if number not in self.published and number not in self.held:
                self.waiting.add(number)
            first = self._images.find(_TO_DO, self.new.shard_ends[number])

    def returns(self, number: int) -> int:
        """A shard that nobody holds any more waits again; how many of its images are to do."""
        left = len(self.left(number))
        if left and self.state != JobState.CANCELLED:
            self.waiting.add(number)
        return left
