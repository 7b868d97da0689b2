"""The ledger in this process's memory: for jobs that one process runs, and for tests.

It answers as the Redis ledger does in every case; the contract suite compares the two.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from jobs.errors import NotFoundError
from jobs.ledger.memory.job import Held, MemoryJob
from jobs.ledger.quotas import check_quota, check_setting, quota_of
from jobs.ledger.spans import dump_spans
from jobs.ledger.types import (
    ALL_SHARDS,
    BY_BUDGET,
    LEASE_S,
    MOST_DEATHS,
    Beat,
    Claim,
    ClaimAnswer,
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
    check_images,
    check_same,
    check_settable,
    event_order,
    given_up,
    part_of,
    places_of,
)
from jobs.task import Failure

NEWS = 5000


class MemoryLedger:
    """clock: Unix time in seconds. lease_s: how long a claim lasts without a heartbeat."""

    def __init__(self, clock: Callable[[], float] = time.time, *, lease_s: float = LEASE_S) -> None:
        self.lease_s = lease_s
        self._clock = clock
        self._lock = threading.Lock()
        self._fences = itertools.count(1)
        self._jobs: dict[str, MemoryJob] = {}
        self._locks: dict[str, tuple[str, float]] = {}
        self._workers: dict[str, tuple[WorkerInfo, float]] = {}
        self._news: deque[News] = deque(maxlen=NEWS)
        self._quotas: dict[str, int] = {}

    # Jobs

    def create(self, job: NewJob, *, done: Iterable[int] = ()) -> bool:
        indices = check_images(done, job.total)
        with self._lock:
            known = self._jobs.get(job.job_id)
            if known is None:
                self._check_quota(job, job.total - len(set(indices)))
                return self._enter(job, indices)
            check_same(job.job_id, known.new.place, job.place)
            if known.state == JobState.CANCELLED or known.new.submitter != job.submitter:
                settled = known.done + len(known.failures)
                self._check_quota(job, job.total - max(settled, len(set(indices))))
            known.new = replace(
                known.new,
                webhook=job.webhook,
                priority=job.priority,
                budget=job.budget,
                submitter=job.submitter,
            )
            for index in indices:
                known.finish(index)
            by_budget = known.state == JobState.PAUSED and known.reason == BY_BUDGET
            if known.state == JobState.CANCELLED or by_budget:
                known.go_on()
                self._tell(known, "active")
            if indices:
                for number in range(len(job.shard_ends)):
                    known.left(number)
            return False

    def _enter(self, job: NewJob, done: Sequence[int]) -> bool:
        entered = self._jobs[job.job_id] = MemoryJob(job, self._clock())
        for index in done:
            entered.finish(index)
        entered.let_open_wait()
        self._tell(entered, "created", images=job.total, done=entered.done)
        return True

    def _check_quota(self, job: NewJob, more: int) -> None:
        """more: images of the job that are to do, if it is entered."""
        most = quota_of(self._quotas, job.submitter)
        if most is not None:
            others = (other for name, other in self._jobs.items() if name != job.job_id)
            statuses = [other.status() for other in others]
            to_do = sum(one.to_do for one in statuses if one.submitter == job.submitter)
            check_quota(job.submitter, most, to_do, more)

    def reopen(self, job_id: str, images: Iterable[int]) -> int:
        with self._lock:
            job = self._job(job_id)
            indices = check_images(images, job.new.total)
            count = job.reopen(indices)
            if not count:
                return 0
            if job.state == JobState.DONE:
                job.go_on()
            elif job.state != JobState.CANCELLED:
                job.let_open_wait()
            self._tell(job, "reopened", images=count)
            return count

    def status(self, job_id: str) -> JobStatus:
        with self._lock:
            return self._job(job_id).status()

    def parts(self, status: JobStatus) -> list[JobStatus]:
        if not status.models:
            return [status]
        with self._lock:
            job = self._jobs.get(status.job_id)
            if job is None:
                return []
            return [
                part_of(status, number, job.counts(shards, images))
                for number, (shards, images) in enumerate(places_of(status.models))
            ]

    def states(self, job_ids: Sequence[str]) -> list[JobState | None]:
        with self._lock:
            jobs = [self._jobs.get(job_id) for job_id in job_ids]
            return [None if job is None else job.state for job in jobs]

    def jobs(self) -> list[JobStatus]:
        with self._lock:
            return [job.status() for job in self._latest_first()]

    def job_ids(self, limit: int) -> list[str]:
        with self._lock:
            return [job.new.job_id for job in self._latest_first()[:limit]]

    def statuses(self, job_ids: Sequence[str]) -> list[JobStatus]:
        with self._lock:
            return [self._jobs[job_id].status() for job_id in job_ids if job_id in self._jobs]

    def set_state(
        self,
        job_id: str,
        state: JobState,
        *,
        failed: int | None = None,
        reason: str | None = None,
    ) -> JobState:
        check_settable(state)
        with self._lock:
            job = self._job(job_id)
            if job.state == state == JobState.PAUSED:
                job.reason = reason
            if job.state in (state, JobState.DONE, JobState.CANCELLED):
                return job.state
            if state == JobState.DONE and not job.settled:
                return job.state
            if state == JobState.DONE and failed not in (None, len(job.failures)):
                return job.state
            job.state, job.reason = state, reason
            if state in (JobState.DONE, JobState.CANCELLED):
                job.end(self._clock())
            if state == JobState.DONE:
                job.error = None
            counts = {"done": job.done, "failed": len(job.failures)}
            self._tell(job, state, **counts if state == JobState.DONE else {})
            return state

    def note_error(self, job_id: str, error: str) -> None:
        with self._lock:
            if job_id in self._jobs:
                self._jobs[job_id].error = error

    def retry(self, job_id: str) -> int:
        with self._lock:
            job = self._job(job_id)
            if not job.failures and job.state in (JobState.ACTIVE, JobState.DONE):
                return 0
            self._check_quota(job.new, job.new.total - job.done)
            count = job.unfail()
            job.go_on()
            self._tell(job, "retried", images=count)
            return count

    def forget(self, job_id: str, *, force: bool = True) -> bool:
        with self._lock:
            job = self._jobs.get(job_id)
            ended = job is None or job.state in (JobState.DONE, JobState.CANCELLED)
            if ended or force:
                self._jobs.pop(job_id, None)
            return ended or force

    # Submitters

    @property
    def user(self) -> str:
        return ""

    def quotas(self) -> dict[str, int]:
        with self._lock:
            return dict(self._quotas)

    def set_quota(self, submitter: str, images: int | None) -> None:
        check_setting(submitter, images)
        with self._lock:
            if images is None:
                self._quotas.pop(submitter, None)
            else:
                self._quotas[submitter] = images

    # Publishing

    def publish(self, job_id: str, window: int, within: range = ALL_SHARDS) -> list[Shard]:
        with self._lock:
            job = self._job(job_id)
            if job.state != JobState.ACTIVE:
                return []
            out = sum(number in within for number in (*job.published, *job.held))
            waiting = (number for number in job.waiting if number in within)
            numbers = heapq.nsmallest(max(0, window - out), waiting)
            for number in numbers:
                job.waiting.remove(number)
                job.published[number] = self._clock()
            return _shards(job, numbers)

    def unclaimed(
        self, job_id: str, older_than_s: float, within: range = ALL_SHARDS
    ) -> list[Shard]:
        with self._lock:
            job = self._job(job_id)
            if job.state != JobState.ACTIVE:
                return []
            now = self._clock()
            old = [n for n, at_s in job.published.items() if at_s < now - older_than_s]
            numbers = [number for number in old if number in within]
            job.published |= dict.fromkeys(numbers, now)
            return _shards(job, numbers)

    # Rendering

    def claim(self, job_id: str, shard: int, owner: str) -> Claim:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None or job.shard(shard) is None:
                return Claim(ClaimAnswer.UNKNOWN)
            if job.state == JobState.CANCELLED:
                return Claim(ClaimAnswer.CANCELLED)
            indices = job.left(shard)
            if not indices:
                return Claim(ClaimAnswer.DONE)
            if shard in job.held:
                return Claim(ClaimAnswer.BUSY)
            if job.state == JobState.PAUSED:
                if job.published.pop(shard, None) is not None:
                    job.waiting.add(shard)
                return Claim(ClaimAnswer.PAUSED)
            return self._grant(job, shard, owner, indices)

    def _grant(self, job: MemoryJob, shard: int, owner: str, indices: list[int]) -> Claim:
        single = None
        if job.deaths[shard] >= MOST_DEATHS:
            single = min(indices, key=lambda index: (job.image_deaths[index], index))
            indices = [single]
        job.waiting.discard(shard)
        job.published.pop(shard, None)
        job.attempts[shard] += 1
        attempt = job.attempts[shard]
        lease = Lease(job.new.job_id, shard, next(self._fences), owner)
        job.hold(Held(lease, single, self._clock() + self.lease_s), self._clock())
        self._tell(job, "claimed", shard=shard, owner=owner, attempt=attempt)
        return Claim(ClaimAnswer.RUN, lease, tuple(indices), attempt, single is not None)

    def heartbeat(
        self, leases: Sequence[Lease], evaluated: Sequence[int], worked_s: Sequence[float] = ()
    ) -> list[Beat]:
        beats = []
        shares_s = worked_s or [0.0] * len(leases)
        with self._lock:
            for lease, count, share_s in zip(leases, evaluated, shares_s, strict=True):
                job = self._renew(lease)
                if job is None:
                    beats.append(Beat.LOST)
                    continue
                job.count(count, share_s, self._clock())
                cancelled = job.state == JobState.CANCELLED
                beats.append(Beat.CANCELLED if cancelled else Beat.HELD)
        return beats

    def settle(self, lease: Lease, done: Sequence[int], failed: Sequence[Failure] = ()) -> bool:
        with self._lock:
            job = self._holding(lease)
            if job is None:
                return False
            (shard,) = _shards(job, [lease.shard])
            for index in (*done, *(failure.index for failure in failed)):
                if not shard.start <= index < shard.stop:
                    raise ValueError(
                        f"shard {lease.shard} of {lease.job_id} has images "
                        f"{shard.start} to {shard.stop - 1}"
                    )
            newly_done = [index for index in done if job.finish(index)]
            if newly_done:
                job.error = None
                told = {"shard": lease.shard, "owner": lease.owner}
                self._tell(job, "settled", **told, images=dump_spans(newly_done))
            for failure in failed:
                self._fail(job, failure)
            job.left(lease.shard)
            self._renew(lease)
            return True

    def release(self, lease: Lease) -> int:
        with self._lock:
            job = self._holding(lease)
            if job is None:
                return 0
            job.let_go(lease.shard, self._clock())
            left = job.returns(lease.shard)
            self._tell(job, "released", shard=lease.shard, owner=lease.owner, left=left)
            return left

    # Reconciling

    def expire(self, limit: int = 100) -> list[Expired]:
        with self._lock:
            now = self._clock()
            out = [
                (held, job)
                for job in self._jobs.values()
                for held in job.held.values()
                if held.expires_s <= now
            ]
            # Those of one moment in the order that Redis keeps them in.
            out.sort(
                key=lambda end: (end[0].expires_s, f"{end[0].lease.shard}/{end[0].lease.job_id}")
            )
            return [self._end_lease(job, held) for held, job in out[:limit]]

    def _end_lease(self, job: MemoryJob, held: Held) -> Expired:
        number, failed = held.lease.shard, []
        job.let_go(number, self._clock())
        if job.state != JobState.CANCELLED:
            job.deaths[number] += 1
            if held.single is not None and job.to_do(held.single, held.single + 1):
                job.image_deaths[held.single] += 1
                if job.image_deaths[held.single] >= MOST_DEATHS:
                    failed.append(held.single)
                    self._fail(job, given_up(held.single))
            job.returns(number)
        (shard,) = _shards(job, [number])
        deaths = job.deaths[number]
        self._tell(job, "expired", shard=number, owner=held.lease.owner, deaths=deaths)
        return Expired(shard, held.lease.owner, deaths, tuple(failed))

    def settled_jobs(self) -> list[str]:
        going = (JobState.ACTIVE, JobState.PAUSED)
        with self._lock:
            return sorted(i for i, job in self._jobs.items() if job.state in going and job.settled)

    def take_delivery(self, hold_s: float) -> WebhookDelivery | None:
        with self._lock:
            now = self._clock()
            due = [
                (job.notice_s, job_id)
                for job_id, job in self._jobs.items()
                if job.notice_s is not None and job.notice_s <= now
            ]
            if not due:
                return None
            job = self._jobs[min(due)[1]]
            assert job.ended_s is not None
            job.notice_s = now + hold_s
            job.notices += 1
            return WebhookDelivery(job.new.job_id, job.ended_s, job.notices)

    def end_delivery(self, delivery: WebhookDelivery, again_after_s: float | None = None) -> None:
        with self._lock:
            job = self._jobs.get(delivery.job_id)
            if job is None or job.notice_s is None or job.ended_s != delivery.ended_s:
                return
            if again_after_s is None:
                job.notice_s = None
            elif job.notices == delivery.attempt:
                job.notice_s = self._clock() + again_after_s

    def lock(self, name: str, owner: str, ttl_s: float) -> bool:
        with self._lock:
            now = self._clock()
            holder, expires_s = self._locks.get(name, (owner, now))
            if holder != owner and expires_s > now:
                return False
            self._locks[name] = owner, now + ttl_s
            return True

    def unlock(self, name: str, owner: str) -> None:
        with self._lock:
            if self._locks.get(name, ("", 0.0))[0] == owner:
                del self._locks[name]

    # Looking

    def pending(self, job_id: str, start: int, stop: int) -> list[int]:
        with self._lock:
            job = self._job(job_id)
            return job.to_do(max(0, start), min(stop, job.new.total))

    def failures(self, job_id: str, limit: int | None = None) -> list[Failure]:
        with self._lock:
            return [failure for _, failure in sorted(self._job(job_id).failures.items())][:limit]

    def shard_ends(self, job_id: str) -> list[int]:
        with self._lock:
            return list(self._job(job_id).new.shard_ends)

    def events(self, job_id: str, after: str = "0", limit: int = 1000) -> list[Event]:
        last = event_order(after)
        with self._lock:
            events = self._job(job_id).events
            return [event for event in events if event_order(event.id) > last][:limit]

    def news(self, after: str | None = None, limit: int = 1000) -> list[News]:
        last = None if after is None else event_order(after)
        with self._lock:
            if last is None:
                return list(self._news)[-limit:]
            return [news for news in self._news if event_order(news.event.id) > last][:limit]

    def worker_seen(self, worker: WorkerInfo, ttl_s: float) -> None:
        with self._lock:
            now = self._clock()
            self._workers[worker.name] = replace(worker, seen_s=now), now + ttl_s

    def worker_gone(self, name: str) -> None:
        with self._lock:
            self._workers.pop(name, None)

    def workers(self) -> list[WorkerInfo]:
        with self._lock:
            now = self._clock()
            found = [worker for worker, expires_s in self._workers.values() if expires_s > now]
        return sorted(found, key=lambda worker: worker.name)

    def time_s(self) -> float:
        return self._clock()

    def eviction(self) -> str | None:
        return None

    def ping(self) -> None:
        """It always answers."""

    # What the methods share; the lock is held

    def _job(self, job_id: str) -> MemoryJob:
        job = self._jobs.get(job_id)
        if job is None:
            raise NotFoundError(f"{job_id}: no such job in the ledger")
        return job

    def _latest_first(self) -> list[MemoryJob]:
        return sorted(
            self._jobs.values(), key=lambda job: (job.created_s, job.new.job_id), reverse=True
        )

    def _holding(self, lease: Lease) -> MemoryJob | None:
        """The lease's job, if the lease still holds its shard."""
        job = self._jobs.get(lease.job_id)
        held = job.held.get(lease.shard) if job else None
        return job if held and held.lease == lease else None

    def _renew(self, lease: Lease) -> MemoryJob | None:
        job = self._holding(lease)
        if job is not None:
            job.held[lease.shard].expires_s = self._clock() + self.lease_s
        return job

    def _fail(self, job: MemoryJob, failure: Failure) -> None:
        if job.fail(failure):
            self._tell(job, "failed", index=failure.index, reason=failure.reason)

    def _tell(self, job: MemoryJob, kind: str, **values: object) -> None:
        ms, number = round(self._clock() * 1000), 0
        if self._news and event_order(self._news[-1].event.id) >= (ms, number):
            ms, number = event_order(self._news[-1].event.id)
            number += 1
        texts = {name: str(value) for name, value in values.items()}
        event = Event(f"{ms}-{number}", ms / 1000, str(kind), texts)
        job.events.append(event)
        self._news.append(News(job.new.job_id, event))


def _shards(job: MemoryJob, numbers: Iterable[int]) -> list[Shard]:
    return [shard for number in numbers if (shard := job.shard(number)) is not None]
