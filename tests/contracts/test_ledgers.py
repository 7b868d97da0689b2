"""What every ledger promises (`jobs.ledger.base.Ledger`), checked over each of them."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from jobs.budget import Budget
from jobs.errors import (
    ExitCode,
    JobConflictError,
    LedgerError,
    NotFoundError,
)
from jobs.ledger import open_ledger
from jobs.ledger.base import Ledger
from jobs.ledger.memory.ledger import MemoryLedger
from jobs.ledger.redis.ledger import RedisLedger
from jobs.ledger.types import (
    BY_BUDGET,
    MOST_DEATHS,
    MOST_IMAGES,
    Beat,
    ClaimAnswer,
    JobState,
    Lease,
    ModelShards,
    NewJob,
    Shard,
    WebhookDelivery,
    WorkerInfo,
    given_up,
)
from tests.ledgers import PLAN, SETTABLE, failure, new_job, run_out, take

SHARDS = [Shard("job", 0, 0, 4), Shard("job", 1, 4, 8), Shard("job", 2, 8, 10)]


class TestErrors:
    def test_a_job_keeps_its_last_error(self, ledger):
        ledger.create(new_job())
        assert ledger.status("job").error is None
        for error in ("the store is away", "w1: out/job has no plan"):
            ledger.note_error("job", error)
        assert ledger.status("job").error == "w1: out/job has no plan"
        assert [job.error for job in ledger.jobs()] == ["w1: out/job has no plan"]

    def test_until_an_image_is_done(self, ledger):
        ledger.create(new_job())
        ledger.publish("job", 1)
        lease = take(ledger, 0)
        ledger.settle(lease, [0])
        ledger.note_error("job", "why")
        ledger.settle(lease, [0], [failure(1)])
        assert ledger.status("job").error == "why"  # nothing was rendered since
        ledger.settle(lease, [2])
        assert ledger.status("job").error is None

    def test_or_until_it_ends_well(self, ledger):
        ledger.create(new_job(), done=range(10))
        ledger.note_error("job", "the gallery cannot be written")
        ledger.set_state("job", JobState.DONE)
        assert ledger.status("job").error is None

    def test_a_cancelled_job_still_says_why_it_stood_still(self, ledger):
        ledger.create(new_job())
        ledger.note_error("job", "why")
        ledger.set_state("job", JobState.CANCELLED)
        assert ledger.status("job").error == "why"

    def test_of_no_job(self, ledger):
        ledger.note_error("nobody", "why")
        assert ledger.jobs() == []
        with pytest.raises(NotFoundError):
            ledger.status("nobody")


def test_the_time_is_the_ledgers_own(world):
    ledger = world.ledger
    before_s = ledger.time_s()
    ledger.create(new_job())
    assert before_s <= ledger.status("job").created_s <= ledger.time_s()


def shards(ledger: Ledger, job_id: str = "job") -> tuple[int, int, int]:
    """waiting, published, leased"""
    status = ledger.status(job_id)
    return status.waiting, status.published, status.leased


def finish(ledger: Ledger, shard: int, job_id: str = "job") -> None:
    """Render whatever is left of a shard."""
    claim = ledger.claim(job_id, shard, "finisher")
    assert claim.lease is not None
    assert ledger.settle(claim.lease, claim.indices)
    assert ledger.release(claim.lease) == 0


def die(ledger: MemoryLedger | RedisLedger, shard: int, owner: str = "w1"):
    """A worker takes the shard and dies on it; what `expire` says."""
    run_out(ledger, take(ledger, shard, owner))
    (expired,) = ledger.expire()
    return expired


class TestCreate:
    def test_a_new_job(self, ledger):
        assert ledger.create(new_job(priority=25, webhook="https://example.com/hook")) is True
        status = ledger.status("job")
        assert (status.job_id, status.name, status.state) == ("job", "the job", JobState.ACTIVE)
        assert (status.plan, status.store, status.model) == (PLAN, "s3://bucket/out", "demo")
        assert (status.priority, status.webhook) == (25, "https://example.com/hook")
        assert (status.total, status.done, status.failed) == (10, 0, 0)
        assert (status.shards, *shards(ledger)) == (3, 3, 0, 0)
        assert (status.evaluations, status.evaluated) == (510, 0)
        assert status.created_s > 1e9
        assert status.ended_s is None
        assert not status.settled

    def test_without_a_webhook(self, ledger):
        ledger.create(new_job())
        assert ledger.status("job").webhook is None

    def test_images_that_are_done_already(self, ledger):
        ledger.create(new_job(), done=iter([0, 1, 2, 3, 9]))
        assert ledger.status("job").done == 5
        assert ledger.pending("job", 0, 10) == [4, 5, 6, 7, 8]
        assert shards(ledger) == (2, 0, 0)
        assert ledger.publish("job", 10) == SHARDS[1:]
        assert ledger.claim("job", 0, "w1").answer == ClaimAnswer.DONE
        assert ledger.claim("job", 2, "w1").indices == (8,)

    @pytest.mark.parametrize("index", [-1, 10, 1000])
    def test_an_image_that_is_not_of_the_job(self, ledger, index):
        with pytest.raises(ValueError, match=f"image {index} .* has 10"):
            ledger.create(new_job(), done=[1, index])
        assert ledger.jobs() == []

    def test_all_done_already(self, ledger):
        ledger.create(new_job(), done=range(10))
        assert ledger.status("job").settled
        assert ledger.settled_jobs() == ["job"]
        assert ledger.publish("job", 10) == []

    def test_no_images_at_all(self, ledger):
        ledger.create(new_job(ends=[]))
        assert ledger.publish("job", 10) == []
        assert ledger.claim("job", 0, "w1").answer == ClaimAnswer.UNKNOWN
        assert ledger.settled_jobs() == ["job"]
        assert ledger.set_state("job", JobState.DONE) == JobState.DONE

    def test_done_only_as_what_was_written(self, ledger):
        """An image that failed was tried again while the end was written, and is done."""
        ledger.create(new_job(), done=range(9))
        lease = take(ledger, 2)
        ledger.settle(lease, [], [failure(9)])
        ledger.release(lease)
        assert ledger.set_state("job", JobState.DONE, failed=0) == JobState.ACTIVE
        assert ledger.retry("job") == 1
        lease = take(ledger, 2)
        assert ledger.set_state("job", JobState.DONE, failed=0) == JobState.ACTIVE
        ledger.settle(lease, [9])
        ledger.release(lease)
        assert ledger.set_state("job", JobState.DONE, failed=1) == JobState.ACTIVE
        assert ledger.set_state("job", JobState.DONE, failed=0) == JobState.DONE

    def test_again_continues_it(self, ledger):
        ledger.create(new_job())
        ledger.publish("job", 1)
        assert ledger.create(new_job(), done=[8, 9]) is False
        assert ledger.status("job").done == 2
        assert shards(ledger) == (1, 1, 0)
        assert ledger.publish("job", 10) == [SHARDS[1]]

    def test_again_settles_what_is_published_or_leased(self, ledger):
        ledger.create(new_job())
        ledger.publish("job", 2)
        lease = take(ledger, 0)
        assert ledger.create(new_job(), done=range(8)) is False
        assert shards(ledger) == (1, 0, 1)
        assert ledger.claim("job", 0, "w2").answer == ClaimAnswer.DONE
        assert ledger.claim("job", 1, "w2").answer == ClaimAnswer.DONE
        assert ledger.settle(lease, [0])
        assert ledger.release(lease) == 0
        assert ledger.status("job").done == 8
        assert ledger.publish("job", 10) == [SHARDS[2]]

    def test_again_with_images_that_had_failed(self, ledger):
        ledger.create(new_job())
        ledger.settle(take(ledger, 1), [6, 7], [failure(4), failure(5)])
        ledger.create(new_job(), done=[4])
        status = ledger.status("job")
        assert (status.done, status.failed) == (3, 1)
        assert ledger.failures("job") == [failure(5)]
        assert ledger.retry("job") == 1
        assert ledger.pending("job", 4, 8) == [5]

    def test_again_does_not_go_on_with_a_paused_job(self, ledger):
        ledger.create(new_job())
        ledger.set_state("job", JobState.PAUSED)
        assert ledger.create(new_job()) is False
        assert ledger.status("job").state == JobState.PAUSED

    def test_again_has_the_new_budget_and_goes_on_where_the_old_one_was_used_up(self, ledger):
        small, large = Budget(images=2), Budget(hours=8.5, images=9)
        ledger.create(new_job(budget=small))
        assert ledger.status("job").budget == small
        assert ledger.set_state("job", JobState.PAUSED, reason=BY_BUDGET) == JobState.PAUSED
        assert ledger.status("job").reason == BY_BUDGET
        assert ledger.create(new_job(budget=large)) is False
        status = ledger.status("job")
        assert (status.state, status.reason, status.budget) == (JobState.ACTIVE, None, large)
        assert len(ledger.publish("job", 10)) == 3
        ledger.create(new_job())
        assert ledger.status("job").budget is None

    def test_why_it_rests_is_said_as_long_as_it_does(self, ledger):
        ledger.create(new_job())
        for change in (
            lambda: ledger.set_state("job", JobState.ACTIVE),
            lambda: ledger.retry("job"),
        ):
            ledger.set_state("job", JobState.PAUSED, reason=BY_BUDGET)
            assert ledger.status("job").reason == BY_BUDGET
            change()
            status = ledger.status("job")
            assert (status.state, status.reason) == (JobState.ACTIVE, None)
        ledger.set_state("job", JobState.PAUSED, reason=BY_BUDGET)
        ledger.set_state("job", JobState.PAUSED)  # by a person, so that no budget lets it go on
        assert ledger.status("job").reason is None
        ledger.create(new_job(budget=Budget(images=9)))
        assert ledger.status("job").state == JobState.PAUSED

    def test_what_of_a_budget_is_used_up(self, ledger):
        ledger.create(new_job(ends=[4], budget=Budget(images=2)))
        lease = take(ledger, 0)
        ledger.settle(lease, [0])
        assert ledger.status("job").spent is None
        ledger.settle(lease, [1])
        assert ledger.status("job").spent == "2 images"
        ledger.create(new_job(ends=[4], budget=Budget(money=2.0, price=4.0)))
        ledger.heartbeat([lease], [0], [1799.0])
        assert ledger.status("job").spent is None
        ledger.heartbeat([lease], [0], [2.0])
        assert ledger.status("job").spent == "2 at 4 an hour"
        ledger.create(new_job(ends=[4], budget=Budget(hours=0.5)))
        assert ledger.status("job").spent == "0.5 hours of workers"

    def test_again_after_the_end(self, ledger):
        ledger.create(new_job(), done=range(10))
        ledger.set_state("job", JobState.DONE)
        assert ledger.create(new_job()) is False
        assert ledger.status("job").state == JobState.DONE
        assert ledger.settled_jobs() == []

    def test_again_after_cancelling(self, ledger):
        ledger.create(new_job())
        ledger.publish("job", 2)
        lease = take(ledger, 0)
        finish(ledger, 1)
        ledger.set_state("job", JobState.CANCELLED)
        assert ledger.create(new_job()) is False
        status = ledger.status("job")
        assert (status.state, status.ended_s) == (JobState.ACTIVE, None)
        assert shards(ledger) == (1, 0, 1)
        assert ledger.publish("job", 10) == [SHARDS[2]]
        assert ledger.heartbeat([lease], [0]) == [Beat.HELD]
        ledger.settle(lease, [0])
        assert ledger.release(lease) == 3
        assert ledger.publish("job", 10) == [SHARDS[0]]

    def test_again_after_cancelling_with_nothing_left(self, ledger):
        ledger.create(new_job())
        ledger.set_state("job", JobState.CANCELLED)
        ledger.create(new_job(), done=range(10))
        assert ledger.settled_jobs() == ["job"]

    def test_another_plan(self, ledger):
        ledger.create(new_job(), done=[1])
        with pytest.raises(JobConflictError, match="job is in the ledger with another plan"):
            ledger.create(new_job(plan="cd" * 32), done=[2])
        assert ledger.status("job").done == 1

    def test_another_store(self, ledger):
        ledger.create(new_job(store="/data/a"), done=[1])
        with pytest.raises(JobConflictError) as caught:
            ledger.create(new_job(store="/data/b", priority=90), done=[2])
        for said in ("its folder in /data/a, not in /data/b", "--store /data/a", "forget job"):
            assert said in str(caught.value)
        status = ledger.status("job")
        assert (status.store, status.done, status.priority) == ("/data/a", 1, 10)
        ledger.forget("job")
        assert ledger.create(new_job(store="/data/b"), done=[2]) is True

    def test_again_with_another_priority(self, ledger):
        ledger.create(new_job(priority=10))
        assert ledger.create(new_job(priority=90)) is False
        assert ledger.status("job").priority == ledger.jobs()[0].priority == 90

    @pytest.mark.parametrize("job_id", ["a:b", "job:job", "0/a", "50% é", "a b", "-", "x" * 200])
    def test_odd_names_do_not_mix(self, ledger, job_id):
        for name in ("job", job_id):
            ledger.create(new_job(name))
            lease = take(ledger, 1, job_id=name)
            ledger.settle(lease, [4], [failure(5)])
        run_out(ledger, lease)
        (expired,) = ledger.expire()
        assert expired.shard == Shard(job_id, 1, 4, 8)
        ledger.forget("job")
        assert ledger.status(job_id).done == 1
        assert ledger.failures(job_id) == [failure(5)]
        assert [job.job_id for job in ledger.jobs()] == [job_id]

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"ends": [4, 4]}, "shard 1 of job has images 4 to 4"),
            ({"ends": [0]}, "shard 0 of job has images 0 to 0"),
            ({"ends": [4, 2]}, "shard 1 of job has images 4 to 2"),
            ({"ends": [MOST_IMAGES + 1]}, "1 to 10000 images"),
            ({"priority": 0}, "1 to 100, not 0"),
            ({"priority": 101}, "1 to 100, not 101"),
        ],
    )
    def test_jobs_that_cannot_be(self, values, message):
        with pytest.raises(ValueError, match=message):
            new_job(**values)

    def test_a_shard_of_the_largest_size(self, ledger):
        ledger.create(new_job(ends=[1, 1 + MOST_IMAGES]))
        claim = ledger.claim("job", 1, "w1")
        assert claim.indices == tuple(range(1, MOST_IMAGES + 1))
        assert ledger.settle(claim.lease, claim.indices)
        assert ledger.release(claim.lease) == 0
        assert ledger.status("job").done == MOST_IMAGES

    def test_one_of_many_is_new(self, world):
        start = threading.Barrier(8)

        def create(number: int) -> bool:
            start.wait()
            return world.another().create(new_job(), done=[number])

        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(create, range(8))) == [False] * 7 + [True]
        assert world.ledger.pending("job", 0, 10) == [8, 9]
        assert [e.kind for e in world.ledger.events("job")] == ["created"]


class TestJobs:
    def test_the_latest_first(self, world):
        for name in ("b", "c", "a"):
            world.ledger.create(new_job(name))
            world.moment()
        assert [job.job_id for job in world.ledger.jobs()] == ["a", "c", "b"]
        assert world.ledger.jobs()[1] == world.ledger.status("c")
        assert world.ledger.job_ids(10) == ["a", "c", "b"]
        assert world.ledger.job_ids(2) == ["a", "c"]
        assert world.ledger.job_ids(0) == []

    def test_those_asked_for(self, ledger):
        for name in ("a", "b", "c"):
            ledger.create(new_job(name))
        found = ledger.statuses(["c", "none", "a"])
        assert found == [ledger.status("c"), ledger.status("a")]
        assert ledger.statuses([]) == []

    def test_forget(self, ledger):
        ledger.create(new_job(), done=[9])
        ledger.publish("job", 2)
        lease = take(ledger, 0)
        ledger.settle(lease, [0], [failure(1)])
        run_out(ledger, lease)
        ledger.forget("job")
        ledger.forget("job")
        assert ledger.jobs() == ledger.expire() == ledger.settled_jobs() == []
        assert ledger.heartbeat([lease], [5]) == [Beat.LOST]
        assert ledger.settle(lease, [1]) is False
        assert ledger.release(lease) == 0
        assert ledger.claim("job", 1, "w1").answer == ClaimAnswer.UNKNOWN
        assert ledger.create(new_job()) is True
        assert ledger.pending("job", 0, 10) == list(range(10))
        assert ledger.failures("job") == []

    @pytest.mark.parametrize("state", SETTABLE)
    def test_forget_without_force_leaves_what_is_not_over(self, ledger, state):
        ledger.create(new_job(), done=range(10) if state is JobState.DONE else ())
        ledger.set_state("job", state)
        over = state in (JobState.DONE, JobState.CANCELLED)
        assert ledger.forget("job", force=False) is over
        assert [job.state for job in ledger.jobs()] == ([] if over else [state])
        assert ledger.forget("job") is ledger.forget("job", force=False) is True
        assert ledger.jobs() == []

    def test_old_leases_do_not_come_back_with_the_job(self, ledger):
        ledger.create(new_job())
        old = take(ledger, 0)
        ledger.forget("job")
        ledger.create(new_job())
        new = take(ledger, 0)
        assert new.fence > old.fence
        assert ledger.heartbeat([old, new], [0, 0]) == [Beat.LOST, Beat.HELD]

    def test_nothing_is_known_of_an_unknown_job(self, ledger):
        calls = [
            lambda: ledger.status("none"),
            lambda: ledger.set_state("none", JobState.PAUSED),
            lambda: ledger.retry("none"),
            lambda: ledger.reopen("none", [0]),
            lambda: ledger.publish("none", 5),
            lambda: ledger.unclaimed("none", 5),
            lambda: ledger.pending("none", 0, 5),
            lambda: ledger.failures("none"),
            lambda: ledger.events("none"),
            lambda: ledger.shard_ends("none"),
        ]
        for call in calls:
            with pytest.raises(NotFoundError, match="none: no such job in the ledger"):
                call()
        ledger.forget("none")
        assert ledger.jobs() == []


class TestStates:
    def test_pause(self, ledger):
        ledger.create(new_job())
        ledger.publish("job", 2)
        lease = take(ledger, 0)
        assert ledger.set_state("job", JobState.PAUSED) == JobState.PAUSED
        assert ledger.publish("job", 10) == []
        assert ledger.claim("job", 1, "w2").answer == ClaimAnswer.PAUSED
        assert ledger.claim("job", 0, "w2").answer == ClaimAnswer.BUSY
        assert shards(ledger) == (2, 0, 1)
        assert ledger.heartbeat([lease], [0]) == [Beat.HELD]
        assert ledger.settle(lease, [0])
        assert ledger.release(lease) == 3
        assert ledger.set_state("job", JobState.ACTIVE) == JobState.ACTIVE
        assert ledger.publish("job", 10) == SHARDS

    def test_a_waiting_shard_of_a_paused_job_waits_on(self, ledger):
        ledger.create(new_job())
        ledger.set_state("job", JobState.PAUSED)
        assert ledger.claim("job", 0, "w1").answer == ClaimAnswer.PAUSED
        assert shards(ledger) == (3, 0, 0)

    def test_a_paused_job_can_be_settled(self, ledger):
        ledger.create(new_job(ends=[2]))
        lease = take(ledger, 0)
        ledger.set_state("job", JobState.PAUSED)
        ledger.settle(lease, [0, 1])
        assert ledger.settled_jobs() == ["job"]
        assert ledger.claim("job", 0, "w2").answer == ClaimAnswer.DONE

    def test_cancel(self, ledger):
        ledger.create(new_job())
        ledger.publish("job", 2)
        lease = take(ledger, 0)
        assert ledger.set_state("job", JobState.CANCELLED) == JobState.CANCELLED
        status = ledger.status("job")
        assert status.ended_s >= status.created_s
        assert shards(ledger) == (0, 0, 1)
        assert ledger.publish("job", 10) == []
        assert ledger.claim("job", 1, "w2").answer == ClaimAnswer.CANCELLED
        assert ledger.claim("job", 0, "w2").answer == ClaimAnswer.CANCELLED
        assert ledger.heartbeat([lease], [3]) == [Beat.CANCELLED]
        assert ledger.settle(lease, [0])
        assert ledger.release(lease) == 3
        assert shards(ledger) == (0, 0, 0)
        assert ledger.status("job").done == 1

    def test_done_only_when_settled(self, ledger):
        ledger.create(new_job(), done=range(9))
        assert ledger.set_state("job", JobState.DONE) == JobState.ACTIVE
        assert ledger.status("job").ended_s is None
        ledger.settle(take(ledger, 2), [], [failure(9)])
        assert ledger.settled_jobs() == ["job"]
        assert ledger.set_state("job", JobState.DONE) == JobState.DONE
        assert ledger.status("job").ended_s is not None
        assert ledger.settled_jobs() == []
        assert ledger.claim("job", 2, "w2").answer == ClaimAnswer.DONE

    @pytest.mark.parametrize("end", [JobState.DONE, JobState.CANCELLED])
    @pytest.mark.parametrize("wanted", SETTABLE)
    def test_an_end_is_an_end(self, ledger, end, wanted):
        ledger.create(new_job(), done=range(10))
        ledger.set_state("job", end)
        ended_s = ledger.status("job").ended_s
        assert ledger.set_state("job", wanted) == end
        assert ledger.status("job").ended_s == ended_s
        assert ledger.settled_jobs() == []

    def test_no_job_is_brought_to_the_state_unknown(self, ledger):
        ledger.create(new_job())
        with pytest.raises(ValueError, match="no state that a job can be brought to"):
            ledger.set_state("job", JobState.UNKNOWN)
        assert ledger.status("job").state == JobState.ACTIVE

    def test_a_cancelled_job_that_is_settled_is_not_ended_again(self, ledger):
        ledger.create(new_job(ends=[1]))
        lease = take(ledger, 0)
        ledger.set_state("job", JobState.CANCELLED)
        ledger.settle(lease, [0])
        assert ledger.settled_jobs() == []

    def test_of_several_jobs_at_once(self, ledger):
        for name, state in (("a", JobState.PAUSED), ("b", JobState.CANCELLED), ("c", None)):
            ledger.create(new_job(name))
            if state is not None:
                ledger.set_state(name, state)
        states = ledger.states(["c", "none", "b", "a", "b"])
        assert states == ["active", None, "cancelled", "paused", "cancelled"]
        assert ledger.states([]) == []

    def test_asking_for_states_renews_nothing(self, ledger):
        ledger.create(new_job())
        lease = take(ledger, 0)
        run_out(ledger, lease)
        assert ledger.states(["job"]) == [JobState.ACTIVE]
        assert len(ledger.expire()) == 1


class TestReopen:
    def test_images_that_are_gone_run_again(self, ledger):
        ledger.create(new_job(), done=[0, 1, 2, 3, 4, 8])
        assert ledger.reopen("job", [8, 1, 5, 1]) == 2
        assert ledger.status("job").done == 4
        assert ledger.pending("job", 0, 10) == [1, 5, 6, 7, 8, 9]
        assert shards(ledger) == (3, 0, 0)
        assert ledger.publish("job", 10) == SHARDS
        assert ledger.claim("job", 0, "w1").indices == (1,)
        assert [dict(e.values) for e in ledger.events("job") if e.kind == "reopened"] == [
            {"images": "2"}
        ]

    def test_a_job_that_was_done_is_active_again(self, ledger):
        ledger.create(new_job(webhook=HOOK), done=range(10))
        ledger.set_state("job", JobState.DONE)
        assert ledger.reopen("job", [9]) == 1
        status = ledger.status("job")
        assert (status.state, status.ended_s, status.done) == (JobState.ACTIVE, None, 9)
        assert ledger.settled_jobs() == []
        assert ledger.take_delivery(60) is None
        assert ledger.publish("job", 10) == [SHARDS[2]]
        finish(ledger, 2)
        assert ledger.settled_jobs() == ["job"]
        assert ledger.set_state("job", JobState.DONE) == JobState.DONE
        assert ledger.take_delivery(60) is not None

    def test_nothing_is_gone(self, ledger):
        ledger.create(new_job(), done=range(10))
        ledger.set_state("job", JobState.DONE)
        assert ledger.reopen("job", []) == 0
        assert ledger.status("job").state == JobState.DONE

    def test_failed_images_stay_failed(self, ledger):
        ledger.create(new_job())
        ledger.settle(take(ledger, 0), [0, 2, 3], [failure(1)])
        assert ledger.reopen("job", [0, 1]) == 1
        assert ledger.failures("job") == [failure(1)]
        assert ledger.pending("job", 0, 4) == [0]

    def test_an_image_that_had_failed_before_it_was_done(self, ledger):
        ledger.create(new_job())
        lease = take(ledger, 0)
        ledger.settle(lease, [1, 2, 3], [failure(0)])
        ledger.release(lease)
        ledger.create(new_job(), done=[0])
        assert ledger.reopen("job", [0]) == 1
        finish(ledger, 0)
        status = ledger.status("job")
        assert (status.done, status.failed) == (4, 0)

    def test_shards_that_are_out_are_not_published_twice(self, ledger):
        ledger.create(new_job(), done=[0, 4])
        ledger.publish("job", 2)
        lease = take(ledger, 0)
        assert ledger.reopen("job", [0, 4]) == 2
        assert shards(ledger) == (1, 1, 1)
        ledger.settle(lease, [1, 2, 3])
        assert ledger.release(lease) == 1
        assert ledger.publish("job", 10) == [SHARDS[0], SHARDS[2]]

    @pytest.mark.parametrize("state", [JobState.PAUSED, JobState.CANCELLED])
    def test_a_job_that_rests_goes_on_resting(self, ledger, state):
        ledger.create(new_job(), done=range(10))
        ledger.set_state("job", state)
        assert ledger.reopen("job", range(10)) == 10
        assert ledger.status("job").state == state
        assert ledger.publish("job", 10) == []
        ledger.create(new_job())
        ledger.set_state("job", JobState.ACTIVE)
        assert ledger.publish("job", 10) == SHARDS

    def test_more_images_than_one_call_takes(self, ledger):
        ledger.create(new_job(ends=range(1, 2502)), done=range(2501))
        assert ledger.reopen("job", range(1, 2501)) == 2500
        assert ledger.pending("job", 0, 2501) == list(range(1, 2501))
        assert len(ledger.publish("job", 3000)) == 2500

    @pytest.mark.parametrize("index", [-1, 10])
    def test_an_image_that_is_not_of_the_job(self, ledger, index):
        ledger.create(new_job(), done=range(10))
        with pytest.raises(ValueError, match=f"image {index} .* has 10"):
            ledger.reopen("job", [1, index])
        assert ledger.status("job").done == 10


class TestRetry:
    def test_only_shards_with_failures_come_back(self, ledger):
        ledger.create(new_job())
        ledger.publish("job", 10)
        for number in range(3):
            lease = take(ledger, number)
            ledger.settle(lease, range(number * 4, min(number * 4 + 4, 10)))
            ledger.release(lease)
        assert ledger.retry("job") == 0
        ledger.forget("job")

        ledger.create(new_job())
        ledger.publish("job", 10)
        finish(ledger, 0)
        lease = take(ledger, 1)
        ledger.settle(lease, [4, 6], [failure(5), failure(7)])
        ledger.release(lease)
        finish(ledger, 2)
        ledger.set_state("job", JobState.DONE)
        assert ledger.retry("job") == 2
        status = ledger.status("job")
        assert (status.state, status.ended_s, status.failed) == (JobState.ACTIVE, None, 0)
        assert ledger.failures("job") == []
        assert shards(ledger) == (1, 0, 0)
        assert ledger.publish("job", 10) == [SHARDS[1]]
        assert ledger.claim("job", 1, "w1").indices == (5, 7)

    def test_shards_that_are_out_are_not_published_twice(self, ledger):
        ledger.create(new_job())
        ledger.publish("job", 2)
        lease = take(ledger, 0)
        ledger.settle(lease, [], [failure(0)])
        other = take(ledger, 2)
        ledger.settle(other, [], [failure(8)])
        ledger.release(other)
        assert ledger.retry("job") == 2
        assert shards(ledger) == (1, 1, 1)
        assert ledger.publish("job", 10) == [SHARDS[2]]
        assert ledger.release(lease) == 4
        assert ledger.publish("job", 10) == [SHARDS[0]]

    @pytest.mark.parametrize("failed", [0, 1])
    def test_a_cancelled_job_is_active_again(self, ledger, failed):
        ledger.create(new_job())
        ledger.publish("job", 2)
        lease = take(ledger, 0)
        ledger.settle(lease, [0], [failure(1)][:failed])
        ledger.release(lease)
        ledger.set_state("job", JobState.CANCELLED)
        assert ledger.retry("job") == failed
        assert ledger.status("job").state == JobState.ACTIVE
        assert ledger.publish("job", 10) == SHARDS

    def test_a_done_job_without_failures_stays_done(self, ledger):
        ledger.create(new_job(), done=range(10))
        ledger.set_state("job", JobState.DONE)
        assert ledger.retry("job") == 0
        assert ledger.status("job").state == JobState.DONE

    def test_a_retried_job_is_not_settled(self, ledger):
        ledger.create(new_job(ends=[1]))
        ledger.settle(take(ledger, 0), [], [failure(0)])
        assert ledger.settled_jobs() == ["job"]
        ledger.retry("job")
        assert ledger.settled_jobs() == []


class TestPublish:
    def test_the_window_is_of_published_and_leased(self, ledger):
        ledger.create(new_job())
        assert ledger.publish("job", 2) == SHARDS[:2]
        assert shards(ledger) == (1, 2, 0)
        assert ledger.publish("job", 2) == []
        lease = take(ledger, 0)
        assert ledger.publish("job", 2) == []
        ledger.settle(lease, range(4))
        ledger.release(lease)
        assert ledger.publish("job", 2) == [SHARDS[2]]
        assert ledger.publish("job", 0) == ledger.publish("job", -1) == []

    def test_what_came_back_goes_first(self, ledger):
        ledger.create(new_job())
        ledger.publish("job", 2)
        ledger.release(take(ledger, 1))
        assert ledger.publish("job", 3) == SHARDS[1:]

    def test_more_shards_than_one_call_looks_at(self, ledger):
        ledger.create(new_job(ends=range(1, 1202)))
        shards = ledger.publish("job", 1201)
        assert [shard.number for shard in shards] == list(range(1201))
        assert (shards[-1].start, shards[-1].stop) == (1200, 1201)

    def test_two_publishers_share(self, world):
        world.ledger.create(new_job(ends=range(1, 401)))
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda _: world.another().publish("job", 300), range(8))
            numbers = [shard.number for part in found for shard in part]
        assert sorted(numbers) == list(range(300))

    def test_unclaimed(self, world):
        ledger = world.ledger
        ledger.create(new_job())
        ledger.publish("job", 2)
        take(ledger, 0)
        world.moment()
        assert ledger.unclaimed("job", 3600) == []
        assert ledger.unclaimed("job", 0) == [SHARDS[1]]
        assert ledger.unclaimed("job", 3600) == []
        assert shards(ledger) == (1, 1, 1)

    def test_unclaimed_counts_as_published_anew(self, world):
        ledger = world.ledger
        ledger.create(new_job(ends=[1]))
        ledger.publish("job", 1)
        age_s = 0.05
        assert world.eventually(lambda: ledger.unclaimed("job", age_s), "a shard of that age")
        if world.clock is not None:
            assert ledger.unclaimed("job", age_s) == []
        assert world.eventually(lambda: ledger.unclaimed("job", age_s), "the same once more")

    def test_more_unclaimed_than_one_call_looks_at(self, world):
        world.ledger.create(new_job(ends=range(1, 1202)))
        world.ledger.publish("job", 1201)
        world.moment()
        numbers = [shard.number for shard in world.ledger.unclaimed("job", 0)]
        assert sorted(numbers) == list(range(1201))

    @pytest.mark.parametrize("state", [JobState.PAUSED, JobState.CANCELLED])
    def test_nothing_is_unclaimed_unless_active(self, world, state):
        world.ledger.create(new_job())
        world.ledger.publish("job", 2)
        world.ledger.set_state("job", state)
        world.moment()
        assert world.ledger.unclaimed("job", 0) == []


class TestSeveralModels:
    """The first two shards are of model a, the last of b."""

    MODELS = (ModelShards("a", 2, 8), ModelShards("b", 1, 2))

    def parts(self, ledger: Ledger) -> list[tuple[str, int, int, int, int, int]]:
        """Count, for each model, waiting, published, leased, done and failed."""
        return [
            (part.model, part.waiting, part.published, part.leased, part.done, part.failed)
            for part in ledger.parts(ledger.status("job"))
        ]

    def test_a_job_of_one_model_is_its_own_part(self, ledger):
        ledger.create(new_job())
        status = ledger.status("job")
        assert ledger.parts(status) == [status]
        assert status.models == ()
        assert status.own_shards == range(3)
        assert status.model_of(2) == "demo"

    def test_parts_have_counts_of_their_own(self, ledger):
        ledger.create(replace(new_job(), model="a, b", models=self.MODELS), done=[1, 9])
        assert self.parts(ledger) == [("a", 2, 0, 0, 1, 0), ("b", 1, 0, 0, 1, 0)]
        ledger.publish("job", 3)
        lease = take(ledger, 2)
        ledger.settle(lease, [], [failure(8)])
        lease = take(ledger, 0)
        ledger.settle(lease, [0], [failure(2)])
        assert self.parts(ledger) == [("a", 0, 1, 1, 2, 1), ("b", 0, 0, 1, 1, 1)]
        first, second = ledger.parts(ledger.status("job"))
        assert (first.total, first.shards, first.own_shards) == (8, 2, range(2))
        assert (second.total, second.shards, second.own_shards) == (2, 1, range(2, 3))
        assert (first.settled, second.settled) == (False, True)
        whole = ledger.status("job")
        assert (whole.models, whole.model) == (self.MODELS, "a, b")
        assert [whole.model_of(shard) for shard in range(3)] == ["a", "a", "b"]
        ledger.forget("job")
        assert ledger.parts(whole) == []

    def test_many_images_in_many_shards(self, ledger):
        """Parts that begin and end inside of a byte of a bitmap."""
        ends = range(3, 301, 3)
        models = (ModelShards("a", 13, 39), ModelShards("b", 50, 150), ModelShards("c", 37, 111))
        job = NewJob("job", "job", PLAN, "s", "a, b, c", ends, 300, models=models)
        done = [index for index in range(300) if index % 7 == 0]
        ledger.create(job, done=done)
        assert self.parts(ledger) == [
            (name, shards, 0, 0, sum(index in images for index in done), 0)
            for (name, shards), images in zip(
                (("a", 13), ("b", 50), ("c", 37)),
                (range(39), range(39, 189), range(189, 300)),
                strict=True,
            )
        ]

    def test_each_is_published_by_itself(self, ledger):
        ledger.create(replace(new_job(), models=self.MODELS))
        assert ledger.publish("job", 1, range(2, 3)) == SHARDS[2:]
        assert ledger.publish("job", 1, range(2, 3)) == []
        assert ledger.publish("job", 1, range(2)) == SHARDS[:1]
        assert ledger.publish("job", 1, range(2)) == []
        take(ledger, 0)
        assert ledger.publish("job", 1, range(2)) == []  # it counts in its window
        assert ledger.publish("job", 5, range(2)) == SHARDS[1:2]

    def test_shards_that_begin_inside_of_a_byte(self, ledger):
        ends = range(1, 41)
        ledger.create(NewJob("job", "job", PLAN, "s", "m", ends, 40))
        within = range(11, 29)
        found = [shard.number for _ in range(6) for shard in ledger.publish("job", 40, within)]
        assert found == list(within)
        assert [shard.number for shard in ledger.publish("job", 50)] == [
            number for number in range(40) if number not in within
        ]

    def test_lost_messages_are_told_by_model(self, world):
        ledger = world.ledger
        ledger.create(replace(new_job(), models=self.MODELS))
        ledger.publish("job", 3)
        world.moment()
        assert ledger.unclaimed("job", 0, range(2, 3)) == SHARDS[2:]
        assert ledger.unclaimed("job", 0, range(2)) == SHARDS[:2]

    def test_models_end_where_shards_do(self):
        for models in (
            (ModelShards("a", 2, 7), ModelShards("b", 1, 3)),
            (ModelShards("a", 3, 10), ModelShards("b", 1, 1)),
            (ModelShards("a", 0, 0), ModelShards("b", 3, 10)),
        ):
            with pytest.raises(ValueError, match="do not end where shards do"):
                replace(new_job(), models=models)


class TestClaim:
    def test_run(self, ledger):
        ledger.create(new_job(), done=[5])
        ledger.publish("job", 10)
        claim = ledger.claim("job", 1, "host:1 “α”")
        assert (claim.answer, claim.indices, claim.attempt) == (ClaimAnswer.RUN, (4, 6, 7), 1)
        assert claim.lease == Lease("job", 1, claim.lease.fence, "host:1 “α”")
        assert shards(ledger) == (0, 2, 1)

    def test_a_shard_is_held_once(self, ledger):
        ledger.create(new_job())
        ledger.publish("job", 10)
        take(ledger, 0, "w1")
        for owner in ("w1", "w2"):
            claim = ledger.claim("job", 0, owner)
            assert (claim.answer, claim.lease, claim.indices) == (ClaimAnswer.BUSY, None, ())

    @pytest.mark.parametrize("shard", [3, -1, -2, 2**31, 10**30])
    def test_no_such_shard(self, ledger, shard):
        ledger.create(new_job())
        assert ledger.claim("job", shard, "w1").answer == ClaimAnswer.UNKNOWN

    def test_attempts_and_fences_grow(self, ledger):
        ledger.create(new_job())
        fences = []
        for attempt in range(1, 4):
            claim = ledger.claim("job", 2, "w1")
            assert claim.attempt == attempt
            fences.append(claim.lease.fence)
            ledger.release(claim.lease)
        assert fences == sorted(set(fences))
        assert ledger.claim("job", 0, "w1").attempt == 1

    def test_a_message_of_a_waiting_shard_may_run(self, ledger):
        """It was delivered twice, and the first worker has given the shard back."""
        ledger.create(new_job())
        ledger.publish("job", 1)
        ledger.release(take(ledger, 0))
        take(ledger, 0, "w2")
        assert shards(ledger) == (2, 0, 1)
        assert ledger.publish("job", 10) == SHARDS[1:]

    def test_one_of_many_threads_gets_it(self, world):
        world.ledger.create(new_job())
        start = threading.Barrier(8)

        def claim(number: int) -> ClaimAnswer:
            start.wait()
            return world.another().claim("job", 0, f"w{number % 2}").answer

        with ThreadPoolExecutor(8) as pool:
            assert Counter(pool.map(claim, range(8))) == {ClaimAnswer.RUN: 1, ClaimAnswer.BUSY: 7}


class TestHeartbeat:
    def test_many_at_once(self, ledger):
        ledger.create(new_job())
        ledger.create(new_job("other"))
        first, other = take(ledger, 0), take(ledger, 0, job_id="other")
        lost = take(ledger, 1)
        ledger.release(lost)
        ledger.set_state("other", JobState.CANCELLED)
        beats = ledger.heartbeat([first, lost, other], [7, 100, 9])
        assert beats == [Beat.HELD, Beat.LOST, Beat.CANCELLED]
        assert ledger.heartbeat([first], [1]) == [Beat.HELD]
        assert ledger.status("job").evaluated == 8
        assert ledger.status("other").evaluated == 9
        assert ledger.heartbeat([], []) == []

    def test_the_seconds_of_workers_are_added_up(self, ledger):
        ledger.create(new_job())
        first, second, lost = take(ledger, 0), take(ledger, 1, "w2"), take(ledger, 2)
        ledger.release(lost)
        ledger.heartbeat([first, lost], [1, 1], [1.5, 9.0])
        ledger.heartbeat([second], [0], [0.25])
        ledger.heartbeat([second], [3])  # a worker of an older version
        assert ledger.status("job").worker_s == 1.75

    def test_each_lease_has_its_evaluations(self, ledger):
        ledger.create(new_job())
        lease = take(ledger, 0)
        with pytest.raises(ValueError, match="argument 2"):
            ledger.heartbeat([lease], [])

    @pytest.mark.parametrize(
        "wrong", [{"fence": 0}, {"owner": "w2"}, {"shard": 1}, {"job_id": "j"}]
    )
    def test_a_lease_must_match(self, ledger, wrong):
        ledger.create(new_job())
        lease = take(ledger, 0)
        other = Lease(**(vars(lease) | wrong))
        assert ledger.heartbeat([other], [1]) == [Beat.LOST]
        assert ledger.settle(other, [0]) is False
        assert ledger.release(other) == 0
        assert ledger.heartbeat([lease], [0]) == [Beat.HELD]
        assert ledger.status("job").evaluated == ledger.status("job").done == 0

    def test_renews(self, ledger):
        ledger.create(new_job())
        lease = take(ledger, 0)
        run_out(ledger, lease)
        assert ledger.heartbeat([lease], [0]) == [Beat.HELD]  # late, but nobody has ended it
        assert ledger.expire() == []

    def test_a_lease_that_is_not_renewed_runs_out(self, world):
        world.ledger.lease_s = 0.05
        world.ledger.create(new_job())
        lease = take(world.ledger, 0)
        (expired,) = world.eventually(world.ledger.expire, "the lease to run out")
        assert (expired.shard, expired.owner) == (SHARDS[0], "w1")
        assert world.ledger.heartbeat([lease], [0]) == [Beat.LOST]

    def test_a_lease_lasts_a_minute(self, world):
        world.ledger.create(new_job())
        take(world.ledger, 0)
        world.moment()
        assert world.ledger.expire() == []
        if world.clock is not None:
            world.clock.now_s += 59.9
            assert world.ledger.expire() == []
            world.clock.now_s += 0.1
            assert len(world.ledger.expire()) == 1


class TestRenderingTime:
    """The time in which somebody held a shard, by the ledger's clock: what a job's speed is of."""

    def test_it_stands_still_while_nobody_holds_any(self, world):
        ledger = world.ledger
        ledger.create(new_job())
        assert ledger.status("job").rendering_s == 0
        held_s = 0.0
        for shard in (0, 1):
            before_s = ledger.time_s()
            first, second = take(ledger, shard), take(ledger, 2)
            world.moment()
            ledger.heartbeat([first, second], [5, 0])
            ledger.release(first)
            ledger.release(second)
            held_s += ledger.time_s() - before_s
            for _ in range(5):
                world.moment()
            assert 0.001 < ledger.status("job").rendering_s <= held_s + 1e-5

    def test_it_is_of_when_evaluations_were_last_told(self, world):
        ledger = world.ledger
        ledger.create(new_job())
        lease = take(ledger, 0)
        world.moment()
        ledger.heartbeat([lease], [5])
        told_s = ledger.status("job").rendering_s
        world.moment()
        ledger.heartbeat([lease], [0])
        assert ledger.status("job").rendering_s == told_s > 0
        ledger.heartbeat([lease], [1])
        assert ledger.status("job").rendering_s > told_s

    def test_a_worker_that_died_took_its_time_too(self, world):
        ledger = world.ledger
        ledger.create(new_job())
        lease = take(ledger, 0)
        world.moment()
        run_out(ledger, lease)
        world.moment()
        assert len(ledger.expire()) == 1
        lease = take(ledger, 0)
        ledger.heartbeat([lease], [5])
        assert ledger.status("job").rendering_s >= 0.003


class TestSettle:
    def test_done_and_failed(self, ledger):
        ledger.create(new_job())
        lease = take(ledger, 1)
        assert ledger.settle(lease, [4, 6]) is True
        assert ledger.settle(lease, [6], [failure(5)]) is True
        status = ledger.status("job")
        assert (status.done, status.failed, status.settled) == (2, 1, False)
        assert ledger.pending("job", 0, 10) == [0, 1, 2, 3, 7, 8, 9]
        assert ledger.failures("job") == [failure(5)]
        assert ledger.release(lease) == 1

    def test_done_wins(self, ledger):
        ledger.create(new_job())
        lease = take(ledger, 0)
        ledger.settle(lease, [0], [failure(0), failure(1), failure(2)])
        ledger.settle(lease, [1], [failure(0)])
        status = ledger.status("job")
        assert (status.done, status.failed) == (2, 1)
        assert ledger.failures("job") == [failure(2)]
        assert [e.values["index"] for e in ledger.events("job") if e.kind == "failed"] == ["1", "2"]

    def test_the_latest_reason_counts(self, ledger):
        ledger.create(new_job())
        lease = take(ledger, 0)
        ledger.settle(lease, [], [failure(3, "first")])
        ledger.settle(lease, [], [failure(3, "second\nline", attempts=2)])
        assert ledger.failures("job") == [failure(3, "second\nline", attempts=2)]
        assert ledger.status("job").failed == 1

    @pytest.mark.parametrize(("done", "failed"), [([3, 8], []), ([], [8]), ([-1], []), ([4], [3])])
    def test_images_of_other_shards(self, ledger, done, failed):
        ledger.create(new_job())
        lease = take(ledger, 1)
        with pytest.raises(ValueError, match="shard 1 of job has images 4 to 7"):
            ledger.settle(lease, [5, *done], [failure(6), *map(failure, failed)])
        assert ledger.pending("job", 0, 10) == list(range(10))

    def test_nothing_once_the_lease_is_lost(self, ledger):
        ledger.create(new_job())
        lease = take(ledger, 0)
        run_out(ledger, lease)
        ledger.expire()
        new = take(ledger, 0, "w2")
        assert ledger.settle(lease, [0], [failure(1)]) is False
        assert ledger.release(lease) == 0
        assert ledger.pending("job", 0, 4) == [0, 1, 2, 3]
        assert ledger.settle(new, [0]) is True

    def test_renews(self, ledger):
        ledger.create(new_job())
        lease = take(ledger, 0)
        run_out(ledger, lease)
        assert ledger.settle(lease, [])
        assert ledger.expire() == []

    def test_the_last_image(self, ledger):
        ledger.create(new_job(), done=range(8))
        lease = take(ledger, 2)
        ledger.settle(lease, [8])
        assert ledger.settled_jobs() == []
        ledger.settle(lease, [9])
        assert ledger.status("job").settled
        assert ledger.settled_jobs() == ["job"]
        assert shards(ledger) == (0, 0, 1)
        assert ledger.release(lease) == 0
        assert shards(ledger) == (0, 0, 0)


class TestExpire:
    def test_leases_of_one_moment_end_in_one_order(self, world):
        """A worker beats for all that it holds at once, so they run out at once, too."""
        ledger = world.ledger
        ledger.create(new_job())
        run_out(ledger, *(take(ledger, shard) for shard in (2, 0, 1)))
        world.moment()
        assert [end.shard.number for end in ledger.expire()] == [0, 1, 2]
        told = [event.values["shard"] for event in ledger.events("job") if event.kind == "expired"]
        assert told == ["0", "1", "2"]

    def test_the_whole_shard_again(self, ledger):
        ledger.create(new_job())
        lease = take(ledger, 1, "w7")
        ledger.settle(lease, [4])
        run_out(ledger, lease)
        (expired,) = ledger.expire()
        assert (expired.shard, expired.owner) == (SHARDS[1], "w7")
        assert (expired.deaths, expired.images_failed) == (1, ())
        assert ledger.expire() == []
        assert shards(ledger) == (3, 0, 0)
        claim = ledger.claim("job", 1, "w8")
        assert (claim.indices, claim.attempt) == ((5, 6, 7), 2)

    def test_a_poison_image(self, ledger):
        """Whoever renders image 6 dies."""
        ledger.create(new_job())
        for death in range(1, MOST_DEATHS + 1):
            assert die(ledger, 1).deaths == death
        asked = []
        failed: tuple[int, ...] = ()
        while not failed:
            claim = ledger.claim("job", 1, "w1")
            asked += claim.indices
            if claim.indices != (6,):
                assert ledger.settle(claim.lease, claim.indices)
                assert ledger.release(claim.lease) > 0
                continue
            run_out(ledger, claim.lease)
            (expired,) = ledger.expire()
            failed = expired.images_failed
        assert failed == (6,)
        assert asked == [4, 5, 6, 7, 6, 6]
        assert ledger.failures("job") == [given_up(6)]
        assert ledger.failures("job")[0].attempts == MOST_DEATHS
        assert expired.deaths == 2 * MOST_DEATHS
        assert ledger.claim("job", 1, "w1").answer == ClaimAnswer.DONE
        assert shards(ledger) == (2, 0, 0)

    def test_images_are_to_be_alone_once_they_go_one_by_one(self, ledger):
        ledger.create(new_job())
        for _ in range(MOST_DEATHS):
            claim = ledger.claim("job", 1, "w1")
            assert (claim.indices, claim.isolated) == ((4, 5, 6, 7), False)
            run_out(ledger, claim.lease)
            ledger.expire()
        claim = ledger.claim("job", 1, "w1")
        assert (claim.indices, claim.isolated) == ((4,), True)
        assert not ledger.claim("job", 0, "w1").isolated

    def test_a_poison_image_is_the_last_one(self, ledger):
        ledger.create(new_job(ends=[1]))
        for _ in range(2 * MOST_DEATHS - 1):
            assert die(ledger, 0).images_failed == ()
        assert die(ledger, 0).images_failed == (0,)
        assert ledger.settled_jobs() == ["job"]

    def test_a_poison_image_may_be_tried_again(self, ledger):
        ledger.create(new_job(ends=[1]))
        while not die(ledger, 0).images_failed:
            pass
        assert ledger.retry("job") == 1
        assert die(ledger, 0).images_failed == ()
        lease = take(ledger, 0)
        assert ledger.settle(lease, [0])
        assert ledger.failures("job") == []

    def test_images_that_finished_did_not_kill(self, ledger):
        ledger.create(new_job(ends=[2]))
        for _ in range(MOST_DEATHS):
            die(ledger, 0)
        lease = take(ledger, 0)
        ledger.settle(lease, [0])
        run_out(ledger, lease)
        assert ledger.expire()[0].images_failed == ()
        assert ledger.claim("job", 0, "w1").indices == (1,)

    def test_giving_back_is_no_death(self, ledger):
        ledger.create(new_job())
        for _ in range(MOST_DEATHS + 1):
            ledger.release(take(ledger, 0))
        assert ledger.claim("job", 0, "w1").indices == (0, 1, 2, 3)

    def test_of_a_finished_shard(self, ledger):
        ledger.create(new_job())
        lease = take(ledger, 0)
        ledger.settle(lease, range(4))
        run_out(ledger, lease)
        assert len(ledger.expire()) == 1
        assert shards(ledger) == (2, 0, 0)

    def test_of_a_cancelled_job(self, ledger):
        ledger.create(new_job())
        lease = take(ledger, 0)
        ledger.set_state("job", JobState.CANCELLED)
        run_out(ledger, lease)
        (expired,) = ledger.expire()
        assert expired.deaths == 0
        assert shards(ledger) == (0, 0, 0)
        ledger.create(new_job())
        assert die(ledger, 0).deaths == 1

    def test_of_a_paused_job(self, ledger):
        ledger.create(new_job())
        lease = take(ledger, 0)
        ledger.set_state("job", JobState.PAUSED)
        run_out(ledger, lease)
        assert ledger.expire()[0].deaths == 1
        assert shards(ledger) == (3, 0, 0)

    def test_a_few_at_a_time(self, ledger):
        ledger.create(new_job(ends=range(1, 6)))
        run_out(ledger, *(take(ledger, number) for number in range(5)))
        counts = [len(ledger.expire(limit=2)) for _ in range(4)]
        assert counts == [2, 2, 1, 0]


class TestLocks:
    def test_one_owner(self, ledger):
        assert ledger.lock("reconcile", "w1", 60) is True
        assert ledger.lock("reconcile", "w2", 60) is False
        assert ledger.lock("reconcile", "w1", 60) is True
        assert ledger.lock("other", "w2", 60) is True
        ledger.unlock("reconcile", "w2")
        assert ledger.lock("reconcile", "w2", 60) is False
        ledger.unlock("reconcile", "w1")
        ledger.unlock("reconcile", "w1")
        assert ledger.lock("reconcile", "w2", 60) is True

    def test_it_ends_by_itself(self, world):
        assert world.ledger.lock("reconcile", "w1", 0.05)
        world.eventually(lambda: world.ledger.lock("reconcile", "w2", 60), "the lock's end")
        assert world.ledger.lock("reconcile", "w1", 60) is False


HOOK = "https://example.com/hook"


def end(ledger: Ledger, job_id: str = "job", **values: object) -> None:
    """A job with a webhook is entered and done."""
    ledger.create(new_job(job_id, **({"webhook": HOOK} | values)), done=range(10))
    assert ledger.set_state(job_id, JobState.DONE) == JobState.DONE


class TestNotices:
    def test_of_a_job_that_is_done(self, ledger):
        ledger.create(new_job(webhook=HOOK), done=range(10))
        ledger.set_state("job", JobState.PAUSED)
        assert ledger.take_delivery(60) is None
        ledger.set_state("job", JobState.DONE)
        notice = ledger.take_delivery(60)
        assert notice == WebhookDelivery("job", ledger.status("job").ended_s, 1)
        assert ledger.take_delivery(60) is None  # it is held
        ledger.end_delivery(notice)
        ledger.end_delivery(notice)
        ledger.end_delivery(notice, again_after_s=0)  # too late
        assert ledger.take_delivery(60) is None

    def test_of_a_cancelled_job(self, ledger):
        ledger.create(new_job(webhook=HOOK))
        ledger.set_state("job", JobState.CANCELLED)
        ledger.set_state("job", JobState.CANCELLED)
        assert ledger.take_delivery(60).job_id == "job"
        assert ledger.take_delivery(60) is None

    def test_not_of_a_job_without_a_webhook(self, ledger):
        end(ledger, webhook=None)
        assert ledger.take_delivery(60) is None

    def test_a_webhook_that_is_submitted_later(self, ledger):
        ledger.create(new_job(), done=range(10))
        ledger.create(new_job(webhook=HOOK))
        assert ledger.status("job").webhook == HOOK
        ledger.set_state("job", JobState.DONE)
        assert ledger.take_delivery(60) is not None

    def test_again_after_a_while(self, world):
        end(world.ledger)
        world.ledger.end_delivery(world.ledger.take_delivery(60), again_after_s=0.05)
        assert world.ledger.take_delivery(60) is None
        again = world.eventually(lambda: world.another().take_delivery(60), "the notice")
        assert again.attempt == 2
        world.ledger.end_delivery(again, again_after_s=3600)
        world.moment()
        assert world.ledger.take_delivery(60) is None

    def test_of_a_sender_that_died(self, world):
        end(world.ledger)
        lost = world.ledger.take_delivery(0.05)
        notice = world.eventually(lambda: world.ledger.take_delivery(60), "the notice")
        assert notice == WebhookDelivery("job", lost.ended_s, 2)
        world.ledger.end_delivery(lost, again_after_s=0)  # it is somebody else's now
        world.moment()
        assert world.ledger.take_delivery(60) is None
        world.ledger.end_delivery(lost)  # but whoever has told the webhook has told it
        world.ledger.end_delivery(notice, again_after_s=0)
        world.moment()
        assert world.ledger.take_delivery(60) is None

    @pytest.mark.parametrize("how", ["retry", "create", "forget"])
    def test_of_a_job_that_goes_on(self, world, how):
        ledger = world.ledger
        ledger.create(new_job(webhook=HOOK), done=range(9))
        ledger.settle(take(ledger, 2), [], [failure(9)])
        ledger.set_state("job", JobState.CANCELLED if how == "create" else JobState.DONE)
        old = ledger.take_delivery(0)
        if how == "retry":
            assert ledger.retry("job") == 1
        elif how == "forget":
            ledger.forget("job")
        if how != "retry":
            ledger.create(new_job(webhook=HOOK))
        world.moment()
        ledger.end_delivery(old, again_after_s=0)
        world.moment()
        assert ledger.take_delivery(60) is None
        ledger.create(new_job(webhook=HOOK), done=range(10))
        assert ledger.set_state("job", JobState.DONE) == JobState.DONE
        ledger.end_delivery(old)  # another end
        new = ledger.take_delivery(60)
        assert new == WebhookDelivery("job", ledger.status("job").ended_s, 1)
        assert new.ended_s > old.ended_s

    def test_the_first_that_is_due_comes_first(self, world):
        for job_id in ("c", "a", "b"):
            end(world.ledger, job_id)
            world.moment()
        taken = [world.ledger.take_delivery(60) for _ in range(3)]
        assert [notice.job_id for notice in taken] == ["c", "a", "b"]
        world.ledger.end_delivery(taken[1], again_after_s=0)
        world.moment()
        assert world.ledger.take_delivery(60).job_id == "a"

    def test_each_is_taken_once(self, world):
        for number in range(20):
            end(world.ledger, f"job-{number:02d}")
        world.moment()

        def take_all(_: int) -> list[str]:
            ledger = world.another()
            return [notice.job_id for notice in iter(lambda: ledger.take_delivery(60), None)]

        with ThreadPoolExecutor(4) as pool:
            taken = [job_id for jobs in pool.map(take_all, range(4)) for job_id in jobs]
        assert sorted(taken) == [f"job-{number:02d}" for number in range(20)]


class TestLooking:
    def test_pending(self, ledger):
        ledger.create(new_job(ends=[7, 21, 40]), done=[0, 8, 9, 10, 11, 12, 13, 14, 15, 39])
        assert ledger.pending("job", 7, 18) == [7, 16, 17]
        assert ledger.pending("job", 16, 17) == [16]
        assert ledger.pending("job", 8, 16) == ledger.pending("job", 5, 5) == []
        assert ledger.pending("job", 38, 1000) == [38]
        assert ledger.pending("job", -5, 3) == [1, 2]
        assert ledger.pending("job", 50, 60) == ledger.pending("job", 9, 2) == []

    def test_failures_by_index(self, ledger):
        ledger.create(new_job())
        for index in (9, 0, 5):
            ledger.settle(take(ledger, index // 4), [], [failure(index)])
        assert ledger.failures("job") == [failure(0), failure(5), failure(9)]
        assert ledger.failures("job", 2) == [failure(0), failure(5)]
        assert ledger.failures("job", 0) == []

    def test_events(self, ledger):
        ledger.create(new_job(), done=[9])
        lease = take(ledger, 0, "w1")
        ledger.settle(lease, [0], [failure(1, "no\nreason")])
        ledger.release(lease)
        die(ledger, 2, "w2")
        for state in (JobState.PAUSED, JobState.ACTIVE, JobState.CANCELLED):
            ledger.set_state("job", state)
        ledger.retry("job")
        ledger.create(new_job(), done=range(10))
        ledger.set_state("job", JobState.DONE)
        events = ledger.events("job")
        assert [(event.kind, dict(event.values)) for event in events] == [
            ("created", {"images": "10", "done": "1"}),
            ("claimed", {"shard": "0", "owner": "w1", "attempt": "1"}),
            ("settled", {"shard": "0", "owner": "w1", "images": "0"}),
            ("failed", {"index": "1", "reason": "no\nreason"}),
            ("released", {"shard": "0", "owner": "w1", "left": "2"}),
            ("claimed", {"shard": "2", "owner": "w2", "attempt": "1"}),
            ("expired", {"shard": "2", "owner": "w2", "deaths": "1"}),
            ("paused", {}),
            ("active", {}),
            ("cancelled", {}),
            ("retried", {"images": "1"}),
            ("done", {"done": "10", "failed": "0"}),
        ]
        times = [event.time_s for event in events]
        assert times == sorted(times)
        assert abs(times[0] - ledger.status("job").created_s) < 1

    def test_events_a_part_at_a_time(self, ledger):
        ledger.create(new_job())
        for state in (JobState.PAUSED, JobState.ACTIVE) * 3:
            ledger.set_state("job", state)
        seen, after = [], "0"
        while part := ledger.events("job", after=after, limit=2):
            assert len(part) <= 2
            seen += [event.kind for event in part]
            after = part[-1].id
        assert seen == ["created", *["paused", "active"] * 3]
        assert ledger.events("job", after=after) == []

    @pytest.mark.parametrize("after", ["", "x", "-", "+", "$", "1-2-3", "١"])
    def test_what_is_no_event(self, ledger, after):
        ledger.create(new_job())
        with pytest.raises(ValueError, match="no id of an event"):
            ledger.events("job", after=after)

    def test_images_that_are_settled_are_told_once_a_call(self, ledger):
        ledger.create(new_job(), done=[9])
        lease, last = take(ledger, 1, "w1"), take(ledger, 2, "w2")
        ledger.settle(lease, [6, 4, 5], [failure(7)])
        ledger.settle(lease, [5])  # nothing new
        ledger.settle(lease, [5, 7])
        ledger.settle(last, [9, 8])
        told = [e.values for e in ledger.events("job") if e.kind == "settled"]
        assert told == [
            {"shard": "1", "owner": "w1", "images": "4-6"},
            {"shard": "1", "owner": "w1", "images": "7"},
            {"shard": "2", "owner": "w2", "images": "8"},
        ]

    def test_settled_images_with_gaps(self, ledger):
        ledger.create(new_job(ends=[MOST_IMAGES]))
        ledger.settle(take(ledger, 0), [5, 3, 4, 10, 9, 9999, 7])
        assert ledger.events("job")[-1].values["images"] == "3-5,7,9-10,9999"

    def test_a_lost_lease_tells_nothing(self, ledger):
        ledger.create(new_job())
        lease = take(ledger, 0)
        run_out(ledger, lease)
        ledger.expire()
        assert ledger.settle(lease, [0]) is False
        assert [e for e in ledger.events("job") if e.kind == "settled"] == []

    def test_news_are_of_all_jobs(self, ledger):
        for name in ("a", "b"):
            ledger.create(new_job(name))
        (first, second) = ledger.news()
        assert [(n.job_id, n.event.kind) for n in (first, second)] == [
            ("a", "created"),
            ("b", "created"),
        ]
        assert second.event.values == {"images": "10", "done": "0"}
        ledger.settle(take(ledger, 0, "w1", "b"), [2])
        ledger.forget("a")
        later = ledger.news(second.event.id)
        assert [(n.job_id, n.event.kind) for n in later] == [("b", "claimed"), ("b", "settled")]
        assert ledger.news(later[-1].event.id) == []
        assert ledger.news(first.event.id, limit=2) == [second, later[0]]
        assert ledger.news(limit=2) == later
        with pytest.raises(ValueError, match="no id of an event"):
            ledger.news("x")

    def test_only_the_last_news_are_kept(self, ledger):
        ledger.create(new_job(ends=[MOST_IMAGES]))
        ledger.settle(take(ledger, 0), [], [failure(index) for index in range(5500)])
        assert 5000 <= len(ledger.news(limit=10_000)) < 5200

    def test_shard_ends(self, ledger):
        ledger.create(new_job())
        assert ledger.shard_ends("job") == [4, 8, 10]

    def test_only_the_last_events_are_kept(self, ledger):
        ledger.create(new_job(ends=[MOST_IMAGES]))
        lease = take(ledger, 0)
        ledger.settle(lease, [], [failure(index) for index in range(2500)])
        events = ledger.events("job", limit=10_000)
        assert 2000 <= len(events) < 2200
        assert events[-1].values["index"] == "2499"

    def test_workers(self, ledger):
        first = WorkerInfo("w1", "höst", 12, "cuda:0", "demo", 2, 30, "busy")
        second = WorkerInfo("w2", "host", 13, "cpu", "demo", 0, 0, "idle")
        ledger.worker_seen(second, 60)
        ledger.worker_seen(first, 60)
        assert ledger.workers() == [first, second]
        assert all(abs(w.seen_s - ledger.time_s()) < 60 for w in ledger.workers())
        ledger.worker_gone("w2")
        ledger.worker_gone("w2")
        assert ledger.workers() == [first]

    def test_workers_that_are_silent(self, world):
        worker = WorkerInfo("w1", "host", 12, "cuda:0", "demo", 2, 30, "busy")
        world.ledger.worker_seen(worker, 0.05)
        world.eventually(lambda: not world.ledger.workers(), "the worker to be dropped")
        world.ledger.worker_seen(worker, 60)
        assert world.ledger.workers() == [worker]

    def test_nothing_is_evicted(self, ledger):
        assert ledger.eviction() is None

    def test_ping(self, ledger):
        ledger.ping()


class TestTogether:
    def test_many_workers_finish_a_job_in_spite_of_deaths(self, world):
        """Every third claim dies, but no shard often enough to go one by one; one thread publishes
        and ends leases, as the reconciler does.
        """
        total, ends = 120, list(range(5, 121, 5))
        world.ledger.create(new_job(ends=ends), done=range(0, total, 11))
        rendered: Counter[int] = Counter(range(0, total, 11))
        claims, deaths = 0, Counter[int]()
        dead: list[Lease] = []
        over, lock = threading.Event(), threading.Lock()

        def dies(number: int) -> bool:
            nonlocal claims
            with lock:
                claims += 1
                if claims % 3 or deaths[number] == MOST_DEATHS - 1:
                    return False
                deaths[number] += 1
                return True

        def work(name: str) -> None:
            ledger = world.another()
            while not over.is_set():
                for number in range(len(ends)):
                    claim = ledger.claim("job", number, name)
                    if claim.lease is None:
                        continue
                    ill = dies(number)
                    part = claim.indices[: len(claim.indices) // 2] if ill else claim.indices
                    if ledger.settle(claim.lease, part):
                        with lock:
                            rendered.update(part)
                    if ill:
                        dead.append(claim.lease)
                    else:
                        ledger.release(claim.lease)

        with ThreadPoolExecutor(4) as pool:
            workers = [pool.submit(work, f"w{number}") for number in range(4)]
            try:
                while not world.ledger.settled_jobs():
                    world.moment()
                    while dead:
                        run_out(world.ledger, dead.pop())
                    world.ledger.expire()
                    world.ledger.publish("job", 6)
            finally:
                over.set()
            for worker in workers:
                worker.result()
        assert not world.ledger.failures("job")
        assert rendered == Counter(range(total))  # each once
        assert deaths.total() > 5
        assert world.ledger.status("job").done == total


class TestOpen:
    def test_memory(self):
        ledger = open_ledger("memory://")
        ledger.create(new_job())
        assert open_ledger("memory://").jobs() == []  # each is its own
        assert ledger.status("job").created_s > 1.7e9

    @pytest.mark.parametrize("url", ["", "nonsense", "localhost:6379", "http://host", "memory://x"])
    def test_no_ledger(self, url):
        with pytest.raises(LedgerError, match=r"give redis://host:port") as caught:
            open_ledger(url)
        assert caught.value.exit_code == ExitCode.LEDGER


def test_a_job_says_how_many_images_it_has():
    assert new_job(ends=[3, 9]).total == 9
    assert NewJob("j", "j", PLAN, "s", "m", [], 0).total == 0
