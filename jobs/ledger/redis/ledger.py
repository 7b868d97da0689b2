"""The ledger in a Redis or Valkey server: what many machines share.

Every method is one Lua script (`lua/`, whose `common.lua` says which keys there are) or one
transaction, unless its comment says otherwise. Each may be sent twice, because an answer can be
lost with its connection; what makes that safe is said in each script. Needs Redis 6.2 or later, as
a single server or behind Sentinel, not a Redis Cluster.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from jobs.errors import LedgerError, NotFoundError
from jobs.ledger.quotas import check_quota, check_setting
from jobs.ledger.redis import replies
from jobs.ledger.redis.bitmaps import (
    by_shard,
    images_in,
    missing_images,
    open_shards,
    pack_bounds,
    pack_images,
    unpack_bounds,
)
from jobs.ledger.redis.errors import is_flaw
from jobs.ledger.redis.server import Server
from jobs.ledger.types import (
    ALL_SHARDS,
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
    PartCounts,
    Place,
    Shard,
    WebhookDelivery,
    WorkerInfo,
    check_images,
    check_readable,
    check_same,
    check_settable,
    event_order,
    given_up,
    part_of,
    places_of,
    unreadable,
)
from jobs.task import Failure

PREFIX = "sdbatch:"

UPLOAD_CHUNK_BYTES = 64 * 1024
UPLOAD_LASTS_MS = 3_600_000
"""An upload whose job was never entered is dropped after so long."""

SHARDS_PER_CALL = 200
"""Looked at in one call, during which the server does nothing else: a few milliseconds."""

NO_EVICTION = "noeviction"

WORKER_BYTES = 64 * 1024
"""Longest entry of a worker that is read."""

IMAGES_PER_CALL = 1000
"""Reopened in one call, each perhaps of a shard of its own; failures read in one."""


class RedisLedger:
    """client: answers with bytes. lease_s: how long a claim lasts without a heartbeat."""

    def __init__(self, client: Redis, *, lease_s: float = LEASE_S) -> None:
        self.lease_s = lease_s
        self._server = Server(client)
        self._unanswered: dict[tuple[str, int, str], str] = {}

    def __repr__(self) -> str:
        return f"RedisLedger({self._server.place})"

    # Jobs

    def create(self, job: NewJob, *, done: Iterable[int] = ()) -> bool:
        bitmap = pack_images(done, job.total)
        token = _token()
        uploaded = bitmap.count(0) < len(bitmap)
        if uploaded:
            self._upload(token, bitmap)
        record: dict[str, str | int] = {
            "name": job.name,
            "model": job.model,
            "quality": job.quality,
            "shards": len(job.shard_ends),
            "evaluations": job.evaluations,
        }
        if job.models:
            record["models"] = replies.dump_models(job.models)
        answer, *more = self._server.run(
            "create",
            token,
            job.job_id,
            job.plan,
            pack_bounds(job.shard_ends),
            open_shards(bitmap, job.shard_ends),
            int(uploaded),
            job.webhook or "",
            job.priority,
            job.store,
            json.dumps(None if job.budget is None else job.budget.to_json()),
            job.submitter,
            job.total,
            *(part for pair in record.items() for part in pair),
        )
        if answer == b"conflict":
            plan, store = more
            check_same(job.job_id, Place(plan.decode(), store.decode()), job.place)
        if answer == b"quota":
            check_quota(job.submitter, *map(int, more))
        if answer == b"stale":
            raise LedgerError(f"{job.job_id} took too long to enter; submit it again")
        if answer == b"there" and uploaded:
            self._review(job.job_id)
        return bool(answer == b"new")

    def _upload(self, token: str, bitmap: bytearray) -> None:
        key = _key("upload", token)
        for start in range(0, len(bitmap), UPLOAD_CHUNK_BYTES):
            chunk = bytes(bitmap[start : start + UPLOAD_CHUNK_BYTES])

            def send(client: Any, start: int = start, chunk: bytes = chunk) -> None:
                with client.pipeline() as pipe:
                    pipe.setrange(key, start, chunk)
                    pipe.pexpire(key, UPLOAD_LASTS_MS)
                    pipe.execute()

            self._server.ask(send)

    def _review(self, job_id: str) -> None:
        """Not one step but many: in between, `claim` and `publish` look at the images anyway."""
        shard: int | None = 0
        while shard is not None:
            shard = self._server.run("review", job_id, shard, SHARDS_PER_CALL)

    def reopen(self, job_id: str, images: Iterable[int]) -> int:
        total, bounds = self._server.ask(
            lambda client: (
                client.hget(_key("job", job_id), "total"),
                client.get(_key("bounds", job_id)),
            )
        )
        indices = check_images(images, int(_known(total, job_id)))
        reopened = 0
        for start in range(0, len(indices), IMAGES_PER_CALL):
            part = indices[start : start + IMAGES_PER_CALL]
            args: list[int] = []
            for shard, of_shard in by_shard(part, bounds):
                args += (shard, len(of_shard), *of_shard)
            answer = self._server.run("reopen", _token(), job_id, *args)
            reopened += int(_known(answer, job_id))
        return reopened

    def status(self, job_id: str) -> JobStatus:
        for status in self.statuses([job_id]):
            return check_readable(status)
        raise _no_job(job_id)

    def jobs(self) -> list[JobStatus]:
        return self.statuses(self._latest_ids(-1))

    def job_ids(self, limit: int) -> list[str]:
        return self._latest_ids(limit - 1) if limit > 0 else []

    def _latest_ids(self, last: int) -> list[str]:
        """last: place of the last one, from 0; -1 for all."""
        ids = self._server.ask(lambda client: client.zrevrange(f"{PREFIX}jobs", 0, last))
        return [job.decode("utf-8", "replace") for job in ids]

    def statuses(self, job_ids: Sequence[str]) -> list[JobStatus]:
        def read(client: Any) -> Any:
            with client.pipeline() as pipe:
                for job_id in job_ids:
                    pipe.hgetall(_key("job", job_id))
                    pipe.zcard(_key("published", job_id))
                    pipe.hlen(_key("claims", job_id))
                return [_unless_flawed(answer) for answer in pipe.execute(raise_on_error=False)]

        read_out = iter(self._server.ask(read))
        return [
            unreadable(job_id, "one of its keys is of another type")
            if None in row
            else replies.status(job_id, *row)
            for job_id, *row in zip(job_ids, read_out, read_out, read_out, strict=True)
            if row[0] != {}
        ]

    def parts(self, status: JobStatus) -> list[JobStatus]:
        if not status.models:
            return [status]
        places = places_of(status.models)
        args = (n for shards, images in places for n in (*_ends(shards), *_ends(images)))
        answer = self._server.run("parts", status.job_id, *args) or ()
        return [part_of(status, n, PartCounts(*counts)) for n, counts in enumerate(answer)]

    def states(self, job_ids: Sequence[str]) -> list[JobState | None]:
        def read(client: Any) -> Any:
            with client.pipeline(transaction=False) as pipe:
                for job_id in job_ids:
                    pipe.hget(_key("job", job_id), "state")
                return [_unless_flawed(answer) for answer in pipe.execute(raise_on_error=False)]

        states = self._server.ask(read)
        return [None if state is None else replies.state(state) for state in states]

    def set_state(
        self,
        job_id: str,
        state: JobState,
        *,
        failed: int | None = None,
        reason: str | None = None,
    ) -> JobState:
        check_settable(state)
        expected = "" if failed is None else failed
        answer = self._server.run("set_state", job_id, state, expected, reason or "")
        return replies.state(_known(answer, job_id))

    def note_error(self, job_id: str, error: str) -> None:
        self._server.run("note_error", job_id, error)

    def retry(self, job_id: str) -> int:
        answer = _known(self._server.run("retry", _token(), job_id), job_id)
        if isinstance(answer, list):
            _, *numbers, submitter = answer
            check_quota(submitter.decode("utf-8", "replace"), *map(int, numbers))
        return int(answer)

    def forget(self, job_id: str, *, force: bool = True) -> bool:
        return bool(self._server.run("forget", job_id, int(force)))

    # Submitters

    @property
    def user(self) -> str:
        return self._server.user

    def quotas(self) -> dict[str, int]:
        found = self._server.ask(lambda client: client.hgetall(f"{PREFIX}quotas"))
        return replies.quotas(found)

    def set_quota(self, submitter: str, images: int | None) -> None:
        check_setting(submitter, images)
        self._server.run("set_quota", submitter, "" if images is None else images)

    # Publishing

    def publish(self, job_id: str, window: int, within: range = ALL_SHARDS) -> list[Shard]:
        """One step for each `SHARDS_PER_CALL` shards."""
        shards: list[Shard] = []
        more = 1
        while more:
            try:
                answer = self._server.run(
                    "publish", _token(), job_id, window, SHARDS_PER_CALL, within.start, within.stop
                )
            except LedgerError:
                if shards:
                    break  # these are published: somebody has to send their messages
                raise
            more, *numbers = _known(answer, job_id)
            shards += replies.shards(job_id, numbers)
        return shards

    def unclaimed(
        self, job_id: str, older_than_s: float, within: range = ALL_SHARDS
    ) -> list[Shard]:
        """One step for each `SHARDS_PER_CALL` shards."""
        shards: list[Shard] = []
        before: bytes | int = 0
        full = True
        while full:
            place = before, SHARDS_PER_CALL, within.start, within.stop
            answer = self._server.run("unclaimed", _token(), job_id, _us(older_than_s), *place)
            before, *numbers = _known(answer, job_id)
            shards += replies.shards(job_id, numbers)
            full = len(numbers) == 3 * SHARDS_PER_CALL
        return shards

    # Rendering

    def claim(self, job_id: str, shard: int, owner: str) -> Claim:
        if not 0 <= shard < 2**31:
            return Claim(ClaimAnswer.UNKNOWN)
        # A claim whose answer never came may have been granted: the next one takes it up.
        asked = (job_id, shard, owner)
        token = self._unanswered.pop(asked, None) or _token()
        try:
            answer, *run = self._server.run(
                "claim", token, job_id, shard, owner, _us(self.lease_s), MOST_DEATHS
            )
        except LedgerError:
            self._unanswered[asked] = token
            raise
        if answer != b"run":
            return Claim(ClaimAnswer(answer.decode()))
        fence, attempt, alone, *indices = run
        lease = Lease(job_id, shard, int(fence), owner)
        return Claim(ClaimAnswer.RUN, lease, tuple(indices), attempt, bool(alone))

    def heartbeat(
        self, leases: Sequence[Lease], evaluated: Sequence[int], worked_s: Sequence[float] = ()
    ) -> list[Beat]:
        args: list[str | int] = []
        shares_s = worked_s or [0.0] * len(leases)
        for lease, count, share_s in zip(leases, evaluated, shares_s, strict=True):
            args += (*_lease_args(lease), count, _us(share_s))
        beats = self._server.run("heartbeat", _token(), _us(self.lease_s), *args)
        return [Beat(beat.decode()) for beat in beats]

    def settle(self, lease: Lease, done: Sequence[int], failed: Sequence[Failure] = ()) -> bool:
        failures: list[str | int] = []
        for failure in failed:
            failures += (failure.index, json.dumps(asdict(failure)), failure.reason)
        answer = self._server.run(
            "settle", _us(self.lease_s), *_lease_args(lease), len(done), *done, *failures
        )
        if isinstance(answer, list):
            first, last = answer
            raise ValueError(f"shard {lease.shard} of {lease.job_id} has images {first} to {last}")
        return bool(answer)

    def release(self, lease: Lease) -> int:
        return int(self._server.run("release", _token(), *_lease_args(lease)))

    # Reconciling

    def expire(self, limit: int = 100) -> list[Expired]:
        failure = json.dumps(asdict(given_up(0)))
        answer = self._server.run("expire", _token(), limit, MOST_DEATHS, failure)
        return [replies.expired(*row) for row in answer]

    def settled_jobs(self) -> list[str]:
        jobs = self._server.ask(lambda client: client.smembers(f"{PREFIX}settled"))
        return sorted(job.decode() for job in jobs)

    def take_delivery(self, hold_s: float) -> WebhookDelivery | None:
        answer = self._server.run("take_delivery", _token(), _us(hold_s))
        if answer is None:
            return None
        job_id, ended, attempt = answer
        return WebhookDelivery(job_id.decode(), int(ended) / 1e6, attempt)

    def end_delivery(self, delivery: WebhookDelivery, again_after_s: float | None = None) -> None:
        again = "" if again_after_s is None else _us(again_after_s)
        self._server.run(
            "end_delivery", delivery.job_id, _us(delivery.ended_s), delivery.attempt, again
        )

    def lock(self, name: str, owner: str, ttl_s: float) -> bool:
        return bool(self._server.run("lock", name, owner, max(1, round(ttl_s * 1000))))

    def unlock(self, name: str, owner: str) -> None:
        self._server.run("unlock", name, owner)

    # Looking

    def pending(self, job_id: str, start: int, stop: int) -> list[int]:
        start = max(0, start)

        def read(client: Any) -> Any:
            with client.pipeline() as pipe:
                pipe.hget(_key("job", job_id), "total")
                for part in ("done", "failed"):
                    pipe.getrange(_key(part, job_id), start // 8, max(start, stop - 1) // 8)
                return pipe.execute()

        total, *bitmaps = self._server.ask(read)
        stop = min(stop, int(_known(total, job_id)))
        return missing_images(bitmaps, start, stop) if start < stop else []

    def failures(self, job_id: str, limit: int | None = None) -> list[Failure]:
        """Not one step: there may be a million. What failed before and did not change is there."""

        def read(client: Any) -> Any:
            failed = images_in(client.get(_key("failed", job_id)) or b"")[:limit]
            return failed, [
                line
                for start in range(0, len(failed), IMAGES_PER_CALL)
                for line in client.hmget(
                    _key("failures", job_id), failed[start : start + IMAGES_PER_CALL]
                )
            ]

        self._check_exists(job_id)
        return [
            replies.failure(index, line)
            for index, line in zip(*self._server.ask(read), strict=True)
            if line is not None
        ]

    def shard_ends(self, job_id: str) -> list[int]:
        bounds = self._server.ask(lambda client: client.get(_key("bounds", job_id)))
        return unpack_bounds(_known(bounds, job_id))

    def events(self, job_id: str, after: str = "0", limit: int = 1000) -> list[Event]:
        event_order(after)  # checks it
        self._check_exists(job_id)
        entries = self._server.ask(
            lambda client: client.xrange(_key("events", job_id), min=f"({after}", count=limit)
        )
        return [replies.event(entry.decode(), fields) for entry, fields in entries]

    def news(self, after: str | None = None, limit: int = 1000) -> list[News]:
        key = f"{PREFIX}news"
        if after is None:
            entries = self._server.ask(lambda client: client.xrevrange(key, count=limit))[::-1]
        else:
            event_order(after)  # checks it
            entries = self._server.ask(
                lambda client: client.xrange(key, min=f"({after}", count=limit)
            )
        return [replies.news(entry.decode(), fields) for entry, fields in entries]

    def worker_seen(self, worker: WorkerInfo, ttl_s: float) -> None:
        self._server.run("worker_seen", worker.name, json.dumps(asdict(worker)), _us(ttl_s))

    def worker_gone(self, name: str) -> None:
        def remove(client: Any) -> None:
            with client.pipeline() as pipe:
                pipe.zrem(f"{PREFIX}workers", name)
                pipe.hdel(f"{PREFIX}worker", name)
                pipe.hdel(f"{PREFIX}seen", name)
                pipe.execute()

        self._server.ask(remove)

    def workers(self) -> list[WorkerInfo]:
        read_out = iter(self._server.run("workers", WORKER_BYTES))
        rows = zip(read_out, read_out, read_out, strict=True)
        found = [replies.worker(*row) for row in rows]
        return sorted(found, key=lambda worker: worker.name)

    def time_s(self) -> float:
        seconds, us = self._server.ask(lambda client: client.time())
        return float(seconds + us / 1e6)

    def eviction(self) -> str | None:
        try:
            memory = self._server.ask(lambda client: client.info("memory"))
        except LedgerError:  # not every user may ask
            return None
        policy = memory.get("maxmemory_policy", NO_EVICTION)
        if policy == NO_EVICTION:
            return None
        return (
            f"ledger at {self._server.place}: its maxmemory-policy is {policy}, by which it may "
            f"delete jobs and messages when it is full; set {NO_EVICTION}"
        )

    def ping(self) -> None:
        self._server.ask(lambda client: client.ping())

    def _check_exists(self, job_id: str) -> None:
        if not self._server.ask(lambda client: client.exists(_key("job", job_id))):
            raise _no_job(job_id)


def _key(part: str, name: str) -> str:
    return f"{PREFIX}{part}:{name}"


def _token() -> str:
    """Names one call: the same call sent twice has the same token."""
    return secrets.token_hex(8)


def _ends(numbers: range) -> tuple[int, int]:
    return numbers.start, numbers.stop


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def _no_job(job_id: str) -> NotFoundError:
    return NotFoundError(f"{job_id}: no such job in the ledger")


def _known(answer: Any, job_id: str) -> Any:
    """The answer, unless it says that there is no such job."""
    if answer is None:
        raise _no_job(job_id)
    return answer


def _unless_flawed(answer: Any) -> Any:
    """An answer of a pipeline; None if what it asked for is of another type."""
    if not isinstance(answer, RedisError):
        return answer
    if not is_flaw(answer):
        raise answer
    return None


def _lease_args(lease: Lease) -> tuple[str, int, int, str]:
    return lease.job_id, lease.shard, lease.fence, lease.owner
