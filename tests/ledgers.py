"""What tests of ledgers share: jobs, claims, and time that passes without waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.ledger.base import Ledger
from jobs.ledger.memory.ledger import MemoryLedger
from jobs.ledger.redis.ledger import RedisLedger
from jobs.ledger.types import ClaimAnswer, JobState, Lease, NewJob
from jobs.task import Failure
from tests.servers import wait_for

PLAN = "ab" * 32
SETTABLE = [state for state in JobState if state is not JobState.UNKNOWN]


@dataclass
class Clock:
    """Unix time in seconds, moved by hand."""

    now_s: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class World:
    """A ledger and its time. another: opens the same ledger once more, as another machine would."""

    ledger: MemoryLedger | RedisLedger
    another: Callable[[], MemoryLedger | RedisLedger]
    clock: Clock | None = None

    def moment(self) -> None:
        """Let a little time pass."""
        if self.clock is None:
            time.sleep(0.002)
        else:
            self.clock.now_s += 0.002

    def eventually(self, condition: Callable[[], Any], what: str) -> Any:
        def after_a_moment() -> Any:
            self.moment()
            return condition()

        return wait_for(after_a_moment, what)


def new_job(job_id: str = "job", ends: Sequence[int] = (4, 8, 10), **values: Any) -> NewJob:
    given = {"plan": PLAN, "store": "s3://bucket/out", "model": "demo", "evaluations": 510}
    return NewJob(job_id=job_id, name=f"the {job_id}", shard_ends=list(ends), **(given | values))


def failure(index: int, reason: str = "out of memory", attempts: int = 1) -> Failure:
    return Failure(index, f"{index:06d}-s{index}", "a “red” circle", index, reason, attempts)


def take(ledger: Ledger, shard: int, owner: str = "w1", job_id: str = "job") -> Lease:
    """A claim that has to be granted."""
    claim = ledger.claim(job_id, shard, owner)
    assert claim.answer == ClaimAnswer.RUN, claim
    assert claim.lease is not None
    return claim.lease


def run_out(ledger: MemoryLedger | RedisLedger, *leases: Lease) -> None:
    """Leases run out now: they are renewed for no time at all."""
    lease_s, ledger.lease_s = ledger.lease_s, 0.0
    ledger.heartbeat(leases, [0] * len(leases))
    ledger.lease_s = lease_s
