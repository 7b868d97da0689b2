"""Random operations on the memory ledger and on the Redis ledger: both must answer the same.

After every step the rules of the design are checked, too; at the end of every run all jobs must
still be able to finish.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jobs.errors import SdbatchError
from jobs.ledger.base import Ledger
from jobs.ledger.memory.ledger import MemoryLedger
from jobs.ledger.quotas import OTHERS
from jobs.ledger.redis import bitmaps
from jobs.ledger.redis.ledger import RedisLedger
from jobs.ledger.types import Beat, ClaimAnswer, JobState, Lease, WebhookDelivery
from tests.ledgers import SETTABLE, Clock, failure, new_job, run_out
from tests.servers import Valkey

JOBS = st.sampled_from(["a", "b"])
OWNERS = st.sampled_from(["w1", "w2"])
LAYOUTS = [[3, 5, 14], [1], [9, 10, 11, 12]]
SUBMITTERS = ["anna", "ben"]
MOST_SHARDS, MOST_IMAGES = 4, 14


class LedgerMachine(RuleBasedStateMachine):
    """memory is what redis is compared with. leases: one of each ledger for every claim granted,
    also those lost since; notices: likewise, for every one taken.
    """

    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        client.flushall()
        self.client = client
        self.clock = Clock()
        self.memory = MemoryLedger(self.clock)
        self.redis = RedisLedger(client)
        self.leases: list[tuple[Lease, Lease]] = []
        self.notices: list[tuple[WebhookDelivery, WebhookDelivery]] = []
        self.layouts: dict[str, list[int]] = {}

    def both(self, ask: Callable[[Any], Any]) -> Any:
        """What both ledgers answer, an error's text included."""
        self.clock.now_s += 0.001  # time passes for Redis between any two calls, too
        return self.same(ask(self.memory), ask(self.redis))

    def both_may_fail(self, ask: Callable[[Any], Any]) -> Any:
        def asked(ledger: Ledger) -> Any:
            try:
                return ask(ledger)
            except (SdbatchError, ValueError) as error:
                return type(error), str(error)

        return self.both(asked)

    def same(self, expected: Any, found: Any) -> Any:
        assert found == expected
        return expected

    # Operations

    @rule(
        job_id=JOBS,
        layout=st.sampled_from(LAYOUTS),
        done=st.sets(st.integers(0, MOST_IMAGES - 1), max_size=MOST_IMAGES),
        priority=st.sampled_from([10, 10, 90]),
        store=st.sampled_from(["s3://a", "s3://a", "s3://a", "s3://b"]),
        submitter=st.sampled_from(SUBMITTERS),
    )
    def create(
        self,
        job_id: str,
        layout: list[int],
        done: set[int],
        priority: int,
        store: str,
        submitter: str,
    ) -> None:
        plan, webhook = f"{LAYOUTS.index(layout)}" * 64, "https://a" if job_id == "a" else None
        values = {"plan": plan, "webhook": webhook, "priority": priority, "store": store}
        job = new_job(job_id, layout, **values, submitter=submitter)
        if self.both_may_fail(lambda ledger: ledger.create(job, done=done)) is True:
            self.layouts[job_id] = layout

    @rule(job_id=JOBS, images=st.sets(st.integers(0, MOST_IMAGES - 1), max_size=MOST_IMAGES))
    def reopen(self, job_id: str, images: set[int]) -> None:
        self.both_may_fail(lambda ledger: ledger.reopen(job_id, images))

    @rule(job_id=JOBS)
    def note_error(self, job_id: str) -> None:
        self.both_may_fail(lambda ledger: ledger.note_error(job_id, "why"))

    @rule(job_id=JOBS, window=st.integers(0, 3))
    def publish(self, job_id: str, window: int) -> None:
        self.both_may_fail(lambda ledger: ledger.publish(job_id, window))

    @rule(job_id=JOBS, older_than_s=st.sampled_from([0, 3600]))
    def unclaimed(self, job_id: str, older_than_s: float) -> None:
        def by_number(ledger: Ledger) -> Any:
            return sorted(ledger.unclaimed(job_id, older_than_s), key=lambda shard: shard.number)

        self.both_may_fail(by_number)

    @rule(job_id=JOBS, shard=st.integers(-1, MOST_SHARDS), owner=OWNERS)
    def claim(self, job_id: str, shard: int, owner: str) -> None:
        expected, found = (
            ledger.claim(job_id, shard, owner) for ledger in (self.memory, self.redis)
        )
        self.same(dataclasses.replace(expected, lease=None), dataclasses.replace(found, lease=None))
        if expected.lease is not None and found.lease is not None:
            assert expected.answer == found.answer == ClaimAnswer.RUN
            pending = self.redis.pending(job_id, 0, MOST_IMAGES)
            assert set(expected.indices) <= set(pending), "a settled image was handed out"
            older = [new for _, new in self.leases if (new.job_id, new.shard) == (job_id, shard)]
            assert all(lease.fence < found.lease.fence for lease in older)
            self.leases.append((expected.lease, found.lease))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), evaluated=st.integers(0, 5))
    def heartbeat(self, data: st.DataObject, evaluated: int) -> None:
        pairs = data.draw(st.lists(st.sampled_from(self.leases), max_size=3, unique=True))
        self.same(
            self.memory.heartbeat([pair[0] for pair in pairs], [evaluated] * len(pairs)),
            self.redis.heartbeat([pair[1] for pair in pairs], [evaluated] * len(pairs)),
        )

    @precondition(lambda self: self.leases)
    @rule(
        data=st.data(),
        done=st.sets(st.integers(0, MOST_IMAGES - 1), max_size=4),
        failed=st.sets(st.integers(0, MOST_IMAGES - 1), max_size=3),
        anywhere=st.booleans(),
        reason=st.sampled_from(["out of memory", "“no”\nreason"]),
    )
    def settle(
        self, data: st.DataObject, done: set[int], failed: set[int], anywhere: bool, reason: str
    ) -> None:
        old, new = data.draw(st.sampled_from(self.leases))
        if not anywhere and old.job_id in self.layouts:
            ends = self.layouts[old.job_id]
            inside = (
                range(([0, *ends])[old.shard], ends[old.shard]) if old.shard < len(ends) else ()
            )
            done, failed = done & set(inside), failed & set(inside)

        def settled(ledger: Ledger, lease: Lease) -> Any:
            try:
                return ledger.settle(lease, sorted(done), [failure(i, reason) for i in failed])
            except ValueError as error:
                return str(error)

        self.same(settled(self.memory, old), settled(self.redis, new))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        old, new = data.draw(st.sampled_from(self.leases))
        self.same(self.memory.release(old), self.redis.release(new))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        pairs = data.draw(st.lists(st.sampled_from(self.leases), min_size=1, max_size=2))
        run_out(self.memory, *(old for old, _ in pairs))
        run_out(self.redis, *(new for _, new in pairs))
        self.expire()

    @precondition(lambda self: self.layouts)
    @rule(job_id=JOBS, shard=st.integers(0, MOST_SHARDS - 1), times=st.integers(1, 4))
    def die_again_and_again(self, job_id: str, shard: int, times: int) -> None:
        for _ in range(times):
            self.claim(job_id, shard, "w1")
            if self.leases:
                old, new = self.leases[-1]
                run_out(self.memory, old)
                run_out(self.redis, new)
            self.expire()

    @rule()
    def expire(self) -> None:
        def in_order(ledger: Ledger) -> Any:
            return sorted(ledger.expire(), key=lambda end: (end.shard.job_id, end.shard.number))

        self.both(in_order)

    @rule(job_id=JOBS, state=st.sampled_from(SETTABLE))
    def set_state(self, job_id: str, state: JobState) -> None:
        self.both_may_fail(lambda ledger: ledger.set_state(job_id, state))

    @rule(job_id=JOBS)
    def retry(self, job_id: str) -> None:
        self.both_may_fail(lambda ledger: ledger.retry(job_id))

    @rule(
        submitter=st.sampled_from([*SUBMITTERS, OTHERS]), images=st.sampled_from([None, 0, 5, 14])
    )
    def set_quota(self, submitter: str, images: int | None) -> None:
        self.both(lambda ledger: ledger.set_quota(submitter, images))
        self.both(lambda ledger: ledger.quotas())

    @rule(job_id=JOBS, force=st.booleans())
    def forget(self, job_id: str, force: bool) -> None:
        if self.both(lambda ledger: ledger.forget(job_id, force=force)):
            self.layouts.pop(job_id, None)

    @rule(owner=OWNERS, take=st.booleans())
    def lock(self, owner: str, take: bool) -> None:
        if take:
            self.both(lambda ledger: ledger.lock("reconcile", owner, 3600))
        else:
            self.both(lambda ledger: ledger.unlock("reconcile", owner))

    @rule(hold_s=st.sampled_from([0, 3600]))
    def take_delivery(self, hold_s: float) -> None:
        self.clock.now_s += 0.001
        old, new = (ledger.take_delivery(hold_s) for ledger in (self.memory, self.redis))
        if old is None or new is None:
            assert old == new
            return
        self.same((old.job_id, old.attempt), (new.job_id, new.attempt))
        self.notices.append((old, new))

    @precondition(lambda self: self.notices)
    @rule(data=st.data(), again_after_s=st.sampled_from([None, 0, 3600]))
    def end_delivery(self, data: st.DataObject, again_after_s: float | None) -> None:
        old, new = data.draw(st.sampled_from(self.notices))
        self.clock.now_s += 0.001
        self.memory.end_delivery(old, again_after_s)
        self.redis.end_delivery(new, again_after_s)

    # What is always true

    @invariant()
    def both_look_the_same(self) -> None:
        def looks(ledger: Ledger) -> Any:
            shown = []
            for job_id in sorted(self.layouts):
                status = ledger.status(job_id)
                ended = status.ended_s is not None
                times = {"created_s": 0.0, "rendering_s": 0.0, "ended_s": float(ended)}
                shown.append(dataclasses.replace(status, **times))
                shown += [ledger.pending(job_id, 0, MOST_IMAGES), ledger.failures(job_id)]
                shown += [(event.kind, event.values) for event in ledger.events(job_id)]
            states = ledger.states(["a", "b"])
            return shown, states, ledger.settled_jobs(), [job.job_id for job in ledger.jobs()]

        self.both(looks)

    @invariant()
    def a_shard_is_held_at_most_once(self) -> None:
        unique = list(dict.fromkeys(new for _, new in self.leases))
        beats = self.redis.heartbeat(unique, [0] * len(unique))
        valid = [lease for lease, beat in zip(unique, beats, strict=True) if beat != Beat.LOST]
        assert max(Counter((v.job_id, v.shard) for v in valid).values(), default=1) == 1
        leased = sum(self.redis.status(job_id).leased for job_id in self.layouts)
        assert leased == len(valid) == self.client.zcard("sdbatch:leases")

    @invariant()
    def counts_agree_with_bitmaps(self) -> None:
        for job_id, ends in self.layouts.items():
            status = self.redis.status(job_id)
            counts = [self.client.bitcount(f"sdbatch:{p}:{job_id}") for p in ("done", "failed")]
            assert counts == [status.done, status.failed]
            assert self.client.bitcount(f"sdbatch:waiting:{job_id}") == status.waiting
            both = f"sdbatch:done:{job_id}", f"sdbatch:failed:{job_id}"
            assert self.client.bitop("AND", "test", *both) == 0 or not self.client.bitcount("test")
            pending = set(self.redis.pending(job_id, 0, ends[-1]))
            assert len(pending) == status.total - status.done - status.failed

    @invariant()
    def every_open_shard_is_somewhere(self) -> None:
        """Waiting, published or claimed: in exactly one of them, unless the job is cancelled."""
        for job_id, ends in self.layouts.items():
            status = self.redis.status(job_id)
            places: Counter[int] = Counter()
            open_, waiting = (
                self.client.get(f"sdbatch:{part}:{job_id}") or b"" for part in ("open", "waiting")
            )
            places.update(bitmaps.images_in(waiting))
            places.update(map(int, self.client.zrange(f"sdbatch:published:{job_id}", 0, -1)))
            places.update(map(int, self.client.hkeys(f"sdbatch:claims:{job_id}")))
            assert max(places.values(), default=1) == 1
            for number, (start, stop) in enumerate(zip([0, *ends], ends, strict=False)):
                is_open = bool(self.redis.pending(job_id, start, stop))
                assert (number in bitmaps.images_in(open_)) == is_open
                if is_open and status.state != JobState.CANCELLED:
                    assert number in places, "a shard was lost"

    def teardown(self) -> None:
        """Whatever happened: what is not cancelled can still be finished."""
        for _, lease in self.leases:
            self.redis.release(lease)
        for job_id in self.layouts:
            self.redis.set_state(job_id, JobState.ACTIVE)
            if self.redis.status(job_id).state == JobState.CANCELLED:
                continue
            published = self.redis.unclaimed(job_id, 0)
            while shards := published + self.redis.publish(job_id, 100):
                published = []
                for shard in shards:
                    claim = self.redis.claim(job_id, shard.number, "w9")
                    assert claim.lease is not None
                    assert self.redis.settle(claim.lease, claim.indices)
                    self.redis.release(claim.lease)
            assert self.redis.status(job_id).settled
            assert self.redis.set_state(job_id, JobState.DONE) == JobState.DONE


def run(valkey: Valkey, examples: int, steps: int) -> None:
    with valkey.client() as client:
        run_state_machine_as_test(
            lambda: LedgerMachine(client),
            settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None),
        )


def test_random_operations(valkey: Valkey):
    run(valkey, examples=40, steps=40)


@pytest.mark.slow
def test_many_random_operations(valkey: Valkey):
    run(valkey, examples=600, steps=60)
