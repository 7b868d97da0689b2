"""What the reconciler mends: windows, lost messages, dead workers, ends of jobs."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict

import pytest

from jobs.errors import StoreError
from jobs.ledger.base import MOST_DEATHS, JobState, NewJob, given_up
from jobs.ledger.memory import MemoryLedger
from jobs.plan import write_plan
from jobs.records import Failure, read_failures
from jobs.storage import JobKeys, LocalStore
from jobs.task import Task
from sd_core.spec import Sampling
from tests.servers import wait_for
from worker.notify import Notifier
from worker.reconcile import LOCK_S, LOST_AFTER_S, Reconciler

KEYS = JobKeys("job")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Queue:
    """Messages by model; `take` is what a worker does."""

    def __init__(self) -> None:
        self.messages = defaultdict(list)

    def send(self, model, shards):
        self.messages[model] += shards

    def length(self, model):
        return len(self.messages[model])

    def take(self):
        return self.messages["demo"].pop(0)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(clock):
    ledger = MemoryLedger(clock, lease_s=60.0)
    ledger.create(NewJob("job", "job", "p" * 64, "out", "demo", range(1, 21), evaluations=20))
    return ledger


@pytest.fixture
def queue():
    return Queue()


@pytest.fixture
def reconciler(ledger, queue, tmp_path):
    def make(owner="w1", store=None, **options):
        opened = LocalStore(tmp_path) if store is None else store
        return Reconciler(ledger, queue, lambda _: opened, owner=owner, slots=3, **options)

    return make


def test_it_fills_the_window_once(reconciler, queue):
    one = reconciler()
    one.round()
    one.round()
    assert [shard.number for shard in queue.messages["demo"]] == [0, 1, 2, 3, 4, 5]


def test_one_at_a_time(reconciler, queue, clock):
    reconciler("w1").round()
    queue.messages.clear()
    clock.now += LOST_AFTER_S
    other = reconciler("w2")
    reconciler("w1").round()
    queue.messages.clear()
    other.round()
    assert queue.length("demo") == 0
    clock.now += LOCK_S + LOST_AFTER_S
    other.round()
    assert queue.length("demo") == 6


def test_lost_messages_are_sent_again(reconciler, queue, clock):
    one = reconciler()
    one.round()
    lost = list(queue.messages["demo"])
    queue.messages.clear()
    one.round()
    assert queue.length("demo") == 0  # somebody may just be about to claim
    clock.now += LOST_AFTER_S + 1
    one.round()
    assert queue.messages["demo"] == lost


def test_messages_that_only_wait_are_not_sent_again(reconciler, queue, clock):
    one = reconciler()
    one.round()
    queue.take()
    clock.now += LOST_AFTER_S + 1
    one.round()
    assert queue.length("demo") == 5


def test_the_shard_of_a_dead_worker_is_published_again(reconciler, queue, ledger, clock):
    one = reconciler()
    one.round()
    shard = queue.take()
    ledger.claim("job", shard.number, "dead")
    clock.now += 61
    one.round()
    assert shard in queue.messages["demo"]


def settle_all(ledger, queue, reconciler):
    while queue.length("demo"):
        shard = queue.take()
        claim = ledger.claim("job", shard.number, "w1")
        failed = [Failure(7, "seven", "a ring", 0, "broke")] if shard.number == 7 else []
        done = [] if failed else list(claim.indices)
        assert ledger.settle(claim.lease, done, failed)
        assert ledger.release(claim.lease) == 0
        if not queue.length("demo"):
            reconciler.round()


def test_a_settled_job_is_finished_in_the_store(reconciler, queue, ledger, tmp_path):
    one = reconciler()
    one.round()
    settle_all(ledger, queue, one)
    assert ledger.status("job").state is JobState.DONE
    store = LocalStore(tmp_path)
    assert json.loads(store.get(KEYS.done))["failed"] == 1
    assert [failure.index for failure in read_failures(store, KEYS)] == [7]
    assert store.head(KEYS.index) is not None


def test_a_store_that_is_away_leaves_the_end_for_later(reconciler, queue, ledger, tmp_path):
    class Away(LocalStore):
        def put(self, *args, **options):
            raise StoreError("away")

    broken = reconciler(store=Away(tmp_path))
    broken.round()
    settle_all(ledger, queue, broken)
    assert ledger.status("job").state is JobState.ACTIVE
    reconciler("w2").round()
    assert ledger.status("job").state is JobState.DONE


def give_up(ledger, shard, clock):
    """Workers die on the only image of the shard until it is given up."""
    for _ in range(2 * MOST_DEATHS):
        assert ledger.claim("job", shard, "dead").lease is not None
        clock.now += 61
        ledger.expire()


def test_images_given_up_get_their_prompt_from_the_plan(reconciler, queue, ledger, clock, tmp_path):
    store = LocalStore(tmp_path)
    tasks = [Task(i, f"ring-{i}", f"ring {i}", "", Sampling(seed=100 + i)) for i in range(20)]
    write_plan(store, KEYS, tasks)
    one = reconciler()
    give_up(ledger, 12, clock)
    assert ledger.failures("job") == [given_up(12)]
    one.round()
    settle_all(ledger, queue, one)
    assert ledger.status("job").state is JobState.DONE
    seven, twelve = read_failures(store, KEYS)
    assert seven == Failure(7, "seven", "a ring", 0, "broke")  # what is known stays
    assert twelve == Failure(12, "ring-12", "ring 12", 112, given_up(12).reason, MOST_DEATHS)


def test_a_job_without_its_plan_ends_all_the_same(
    reconciler, queue, ledger, clock, tmp_path, caplog
):
    one = reconciler()
    give_up(ledger, 12, clock)
    one.round()
    settle_all(ledger, queue, one)
    assert ledger.status("job").state is JobState.DONE
    assert read_failures(LocalStore(tmp_path), KEYS)[1] == given_up(12)
    assert "an image that failed has no prompt" in caplog.text


def test_the_end_of_a_job_is_told_after_it_is_written(reconciler, queue, ledger, tmp_path):
    told = []

    class Listening(Notifier):
        def tell(self, notice):
            told.append((notice.job_id, LocalStore(tmp_path).head(KEYS.done) is not None))
            self._ledger.end_notice(notice)

    values = {field: getattr(ledger.status("job"), field) for field in ("name", "plan", "store")}
    again = NewJob("job", model="demo", shard_ends=range(1, 21), evaluations=20, **values)
    ledger.create(dataclasses.replace(again, webhook="https://example.com"))
    one = reconciler(notifier=Listening(ledger))
    one.round()
    assert told == []
    settle_all(ledger, queue, one)
    wait_for(lambda: told == [("job", True)], "the webhook to be told")
