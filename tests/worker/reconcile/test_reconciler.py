"""What the reconciler mends: windows, lost messages, dead workers, ends of jobs."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections import defaultdict

import pytest

from jobs.budget import Budget
from jobs.errors import StoreError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.plan import write_plan
from jobs.folder.records import dump_lines, read_failures
from jobs.ledger.memory.ledger import MemoryLedger
from jobs.ledger.types import (
    BY_BUDGET,
    MOST_DEATHS,
    ClaimAnswer,
    JobState,
    ModelShards,
    NewJob,
    WorkerInfo,
    given_up,
)
from jobs.plan.part import dump, pack
from jobs.storage import LocalStore
from jobs.task import Failure, Task
from sd_core.spec import Sampling
from tests.servers import wait_for
from worker.reconcile.finalize import HOLD_S, SHOW_AGAIN_S, SHOW_WITHIN_S, JobFinalizer
from worker.reconcile.reconciler import LOCK_S, LOST_AFTER_S, MISSED_AFTER_S, Reconciler
from worker.reconcile.webhooks import Notifier

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


def test_rounds_do_not_keep_step_with_what_waits_for_messages(reconciler):
    waits: list[float] = []

    class Stop:
        def wait(self, seconds: float) -> bool:
            waits.append(seconds)
            return len(waits) == 50

    reconciler().run(Stop(), every_s=2.0)
    assert 1.0 <= min(waits) < 1.5 < 2.5 < max(waits) <= 3.0


def test_it_fills_the_window_once(reconciler, queue):
    one = reconciler()
    one.round()
    one.round()
    assert [shard.number for shard in queue.messages["demo"]] == [0, 1, 2, 3, 4, 5]


def test_a_job_whose_budget_is_used_up_rests(reconciler, queue, ledger):
    job = NewJob("small", "small", "p" * 64, "out", "demo", [2, 4], 4, budget=Budget(images=1))
    ledger.create(job)
    reconciler().round()
    queue.messages.clear()
    lease = ledger.claim("small", 0, "w1").lease
    ledger.settle(lease, [0])
    reconciler().round()
    status = ledger.status("small")
    assert (status.state, status.reason) == (JobState.PAUSED, BY_BUDGET)
    assert not any(shard.job_id == "small" for shard in queue.messages["demo"])
    assert ledger.settle(lease, [1])  # what is in the middle is finished
    ledger.release(lease)
    ledger.create(dataclasses.replace(job, budget=Budget(images=4)))
    assert ledger.claim("small", 1, "w1").answer == ClaimAnswer.RUN


def test_the_end_of_a_budget_is_not_before_that_of_its_job(reconciler, ledger):
    ledger.create(
        NewJob("small", "small", "p" * 64, "out", "demo", [1], 1, budget=Budget(images=1))
    )
    lease = ledger.claim("small", 0, "w1").lease
    ledger.settle(lease, [0])
    reconciler().round()
    assert ledger.status("small").reason is None


def test_each_model_of_a_job_has_a_window_and_a_queue(reconciler, queue, ledger, clock):
    models = (ModelShards("a", 8, 8), ModelShards("b", 4, 4))
    both = NewJob("both", "both", "p" * 64, "out", "a, b", range(1, 13), 12, models=models)
    ledger.create(both)
    ledger.worker_seen(WorkerInfo("w1", "host", 1, "cpu", "a", 0, 0, "idle"), 1e9)
    one = reconciler()
    one.round()
    for model, numbers in (("a", range(6)), ("b", range(8, 12)), ("demo", range(6))):
        assert [shard.number for shard in queue.messages[model]] == list(numbers)
    assert "a, b" not in queue.messages
    # What waits in the queue of a is there; what b was sent is lost.
    lost = list(queue.messages["b"])
    queue.messages["b"].clear()
    clock.now += LOST_AFTER_S + 1
    one.round()
    assert queue.messages["b"] == lost
    assert queue.length("a") == 6


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


def test_lost_messages_are_sent_again_while_other_jobs_keep_the_queue_full(
    reconciler, queue, ledger, clock
):
    one = reconciler()
    one.round()
    lost = list(queue.messages["demo"])  # popped by a worker that was killed
    queue.messages.clear()
    ledger.create(NewJob("long", "long", "p" * 64, "out", "demo", range(1, 1001), evaluations=1))
    one.round()

    def serve() -> None:
        """What workers do in a few seconds: they take a shard and render it."""
        shard = queue.take()
        claim = ledger.claim(shard.job_id, shard.number, "w1")
        ledger.settle(claim.lease, claim.indices)
        ledger.release(claim.lease)
        clock.now += 2
        one.round()

    served_at = clock.now
    while clock.now - served_at < MISSED_AFTER_S - LOST_AFTER_S:
        serve()
    assert ledger.status("job").done == 0
    while clock.now - served_at < MISSED_AFTER_S + LOST_AFTER_S:
        serve()
    assert ledger.status("job").done >= len(lost)


def test_a_queue_that_nobody_reads_does_not_grow(reconciler, queue, clock):
    one = reconciler()
    one.round()
    sent = list(queue.messages["demo"])
    for _ in range(5):
        clock.now += MISSED_AFTER_S + 1
        one.round()
    assert queue.messages["demo"] == sent


def test_the_shard_of_a_dead_worker_is_published_again(reconciler, queue, ledger, clock):
    one = reconciler()
    one.round()
    shard = queue.take()
    ledger.claim("job", shard.number, "dead")
    clock.now += 61
    one.round()
    assert shard in queue.messages["demo"]


def a_record(index):
    return {
        "index": index,
        "path": f"images/{index}.png",
        "sha256": "0f" * 32,
        "bytes": 1,
        "prompt": "a ring",
        "seed": 0,
        "width": 64,
        "height": 64,
        "evaluations": 1,
        "model": {"name": "demo", "digest": "5a" * 32},
    }


def put_images(store, keys, shard, indices):
    """As small as their records say, and the records."""
    records = [a_record(index) for index in indices]
    for record in records:
        store.put(keys(record["path"]), b"x", overwrite=True)
    store.put(keys.records(shard), dump_lines(records), overwrite=True)


def settle_all(ledger, queue, reconciler, store):
    """As workers do it: the record of each image is there before the ledger knows of it."""
    while queue.length("demo"):
        shard = queue.take()
        claim = ledger.claim("job", shard.number, "w1")
        failed = [Failure(7, "seven", "a ring", 0, "broke")] if shard.number == 7 else []
        done = [] if failed else list(claim.indices)
        if done:
            put_images(store, KEYS, shard.number, done)
        assert ledger.settle(claim.lease, done, failed)
        assert ledger.release(claim.lease) == 0
        if not queue.length("demo"):
            reconciler.round()
    reconciler._finalizer.wait()


def test_a_settled_job_is_finished_in_the_store(reconciler, queue, ledger, tmp_path):
    one = reconciler()
    one.round()
    settle_all(ledger, queue, one, LocalStore(tmp_path))
    assert ledger.status("job").state is JobState.DONE
    store = LocalStore(tmp_path)
    assert json.loads(store.get(KEYS.done))["failed"] == 1
    assert [failure.index for failure in read_failures(JobFolder(store, KEYS))] == [7]
    assert store.head(KEYS.index) is not None


def test_a_cancelled_job_gets_a_gallery_of_what_it_has(reconciler, queue, ledger, tmp_path, clock):
    store = LocalStore(tmp_path)
    one, other = reconciler("w1"), reconciler("w2")
    one.round()
    leases = []
    for number in range(3):
        claim = ledger.claim("job", queue.take().number, "w1")
        failed = [Failure(2, "2", "a ring", 0, "broke")] if number == 2 else []
        done = [] if failed else list(claim.indices)
        store.put(KEYS.records(number), dump_lines(map(a_record, done)))
        ledger.settle(claim.lease, done, failed)
        leases.append(claim.lease)
    ledger.set_state("job", JobState.CANCELLED)
    one.round()
    one._finalizer.wait()
    assert store.head(KEYS.index) is None  # a worker is still at it
    for lease in leases:
        ledger.release(lease)
    one.round()
    one._finalizer.wait()
    page = store.get(KEYS.index).decode()
    assert "This job is not finished: it has 2 of 20 pictures so far" in page
    assert [failure.index for failure in read_failures(JobFolder(store, KEYS))] == [2]
    assert store.head(KEYS.sheet(0)) is not None
    assert store.head(KEYS.done) is None
    # Written once, by whoever comes first.
    store.delete(KEYS.index)
    for reconciling in (one, other) * 3:
        clock.now += SHOW_AGAIN_S + LOCK_S
        reconciling.round()
        reconciling._finalizer.wait()
    assert store.head(KEYS.index) is None
    # Once more if it goes on and is cancelled anew.
    ledger.create(NewJob("job", "job", "p" * 64, "out", "demo", range(1, 21), evaluations=20))
    ledger.set_state("job", JobState.CANCELLED)
    clock.now += LOCK_S
    other.round()
    other._finalizer.wait()
    assert store.head(KEYS.index) is not None


def test_a_gallery_that_failed_is_tried_again_by_and_by(
    reconciler, ledger, tmp_path, clock, monkeypatch
):
    store = LocalStore(tmp_path)
    enter_settled(ledger, store, "stopped")
    ledger.set_state("stopped", JobState.CANCELLED)
    asked = []

    def write(*_, **__):
        asked.append(clock.now)
        raise StoreError("the bucket is gone")

    monkeypatch.setattr("worker.reconcile.finalize.write_unfinished_report", write)
    one = reconciler()
    for _ in range(5):
        one.round()
        one._finalizer.wait()
    assert len(asked) == 1
    assert "the bucket is gone" in ledger.status("stopped").error
    clock.now += SHOW_AGAIN_S
    one.round()
    one._finalizer.wait()
    assert len(asked) == 2
    clock.now += SHOW_WITHIN_S
    one.round()
    one._finalizer.wait()
    assert len(asked) == 2


@pytest.mark.parametrize("ended", [False, True])
def test_the_end_is_that_of_the_images_as_they_are(
    reconciler, queue, ledger, tmp_path, monkeypatch, ended
):
    """While it is written, what failed is tried again, and done; or all of that, and another worker
    ends the job."""
    store = LocalStore(tmp_path)
    write_end = JobFinalizer._write_end

    def and_meanwhile(self, status):
        write_end(self, status)
        if ledger.retry("job"):
            (shard,) = ledger.publish("job", 1)
            claim = ledger.claim("job", shard.number, "w2")
            put_images(store, KEYS, shard.number, range(shard.start, shard.stop))
            ledger.settle(claim.lease, claim.indices)
            ledger.release(claim.lease)
            if ended:
                ledger.set_state("job", JobState.DONE)

    monkeypatch.setattr(JobFinalizer, "_write_end", and_meanwhile)
    one = reconciler()
    one.round()
    settle_all(ledger, queue, one, store)
    status = ledger.status("job")
    assert (status.state, status.done, status.failed) == (JobState.DONE, 20, 0)
    done = json.loads(store.get(KEYS.done))
    assert (done["images"], done["failed"]) == (20, 0)
    assert read_failures(JobFolder(store, KEYS)) == []


def test_a_store_that_is_away_leaves_the_end_for_later(reconciler, queue, ledger, tmp_path):
    class Away(LocalStore):
        def put(self, *args, **options):
            raise StoreError("away")

    broken = reconciler(store=Away(tmp_path))
    broken.round()
    settle_all(ledger, queue, broken, LocalStore(tmp_path))
    assert ledger.status("job").state is JobState.ACTIVE
    other = reconciler("w2")
    other.round()
    other._finalizer.wait()
    assert ledger.status("job").state is JobState.DONE


@pytest.mark.parametrize("data", [None, b"", b"longer than it was"])
def test_what_is_gone_or_damaged_at_the_end_is_rendered_again(
    reconciler, queue, ledger, tmp_path, data
):
    store = LocalStore(tmp_path)
    enter_settled(ledger, store, "broken")
    key = JobKeys("broken")(a_record(0)["path"])
    store.delete(key)
    if data is not None:
        store.put(key, data)
    one = reconciler()
    one.round()
    one._finalizer.wait()
    status = ledger.status("broken")
    assert (status.state, status.done, status.failed) == (JobState.ACTIVE, 0, 0)
    assert store.head(JobKeys("broken").done) is None
    store.put(key, b"x", overwrite=True)
    assert ledger.settle(ledger.claim("broken", 0, "w1").lease, [0])
    one.round()
    one._finalizer.wait()
    assert ledger.status("broken").state is JobState.DONE


def test_a_list_of_images_that_lags_behind_is_no_damage(reconciler, ledger, tmp_path):
    class Lagging(LocalStore):
        def list(self, prefix):
            return (info for info in super().list(prefix) if "/images/" not in info.key)

    enter_settled(ledger, LocalStore(tmp_path), "lagging")
    one = reconciler(store=Lagging(tmp_path))
    one.round()
    one._finalizer.wait()
    assert ledger.status("lagging").state is JobState.DONE


def enter_settled(ledger, store, job, record=None):
    """A job of one image that is done, and its record."""
    ledger.create(NewJob(job, job, "p" * 64, "out", "demo", [1], evaluations=1), done=[0])
    put_images(store, JobKeys(job), 0, [0])
    if record is not None:
        store.put(JobKeys(job).records(0), dump_lines([record]), overwrite=True)


def test_an_odd_record_keeps_no_other_job_from_its_end(reconciler, ledger, tmp_path, caplog):
    store = LocalStore(tmp_path)
    enter_settled(ledger, store, "a-odd", {"index": 0})
    enter_settled(ledger, store, "b-good")
    one = reconciler()
    one.round()
    one._finalizer.wait()
    assert ledger.status("a-odd").state is JobState.ACTIVE
    assert ledger.status("b-good").state is JobState.DONE
    assert "job a-odd cannot be finished yet: " in caplog.text
    assert "line 1: path is missing" in caplog.text


def test_what_nobody_expects_ends_neither_thread(reconciler, ledger, tmp_path, monkeypatch, caplog):
    store = LocalStore(tmp_path)
    enter_settled(ledger, store, "a-odd")
    enter_settled(ledger, store, "b-good")

    def end(folder, failures, model, *, images):
        if folder.keys.job_id == "a-odd":
            raise KeyError("bytes")

    monkeypatch.setattr("worker.reconcile.finalize.end_job", end)
    jobs, rounds = ledger.jobs, []

    def odd_jobs():
        rounds.append(len(rounds))
        if len(rounds) == 1:
            raise ZeroDivisionError
        return jobs()

    monkeypatch.setattr(ledger, "jobs", odd_jobs)
    one, stop = reconciler(), threading.Event()
    thread = threading.Thread(target=one.run, args=(stop, 0.001), daemon=True)
    thread.start()
    wait_for(lambda: ledger.status("b-good").state is JobState.DONE, "the other job's end")
    wait_for(lambda: len(rounds) > 1, "another round")
    stop.set()
    thread.join()
    assert ledger.status("a-odd").state is JobState.ACTIVE
    assert "ZeroDivisionError" in caplog.text
    assert "KeyError" in caplog.text


def test_a_gallery_that_takes_its_time_holds_nothing_up(
    reconciler, queue, ledger, clock, tmp_path, monkeypatch
):
    enter_settled(ledger, LocalStore(tmp_path), "huge")
    writing, go_on, written = threading.Event(), threading.Event(), []

    def end(folder, failures, model, *, images):
        written.append(folder.keys.job_id)
        writing.set()
        assert go_on.wait(60)

    monkeypatch.setattr("worker.reconcile.finalize.end_job", end)
    one, other = reconciler("w1"), reconciler("w2")
    one.round()
    assert writing.wait(60)
    assert queue.length("demo") == 6
    shard = queue.take()
    ledger.claim("job", shard.number, "dead")
    # As long as it says that it is at it, nobody else begins.
    for _ in range(20):
        clock.now += HOLD_S / 2
        one.round()
        other.round()
        other._finalizer.wait()
    assert shard in queue.messages["demo"]
    assert written == ["huge"]
    go_on.set()
    one._finalizer.wait()
    assert ledger.status("huge").state is JobState.DONE
    assert ledger.lock("finish:huge", "w2", 1)


def test_the_end_that_a_dead_worker_began_is_taken_up(reconciler, ledger, clock, tmp_path):
    enter_settled(ledger, LocalStore(tmp_path), "huge")
    assert ledger.lock("finish:huge", "dead", HOLD_S)
    one = reconciler()
    one.round()
    one._finalizer.wait()
    assert ledger.status("huge").state is JobState.ACTIVE
    clock.now += HOLD_S
    one.round()
    one._finalizer.wait()
    assert ledger.status("huge").state is JobState.DONE


def give_up(ledger, shard, clock):
    """Workers die on the only image of the shard until it is given up."""
    for _ in range(2 * MOST_DEATHS):
        assert ledger.claim("job", shard, "dead").lease is not None
        clock.now += 61
        ledger.expire()


def test_images_given_up_get_their_prompt_from_the_plan(reconciler, queue, ledger, clock, tmp_path):
    store = LocalStore(tmp_path)
    tasks = [Task(i, f"ring-{i}", f"ring {i}", "", Sampling(seed=100 + i)) for i in range(20)]
    write_plan(JobFolder(store, KEYS), [pack(dump(tasks), 0)])
    one = reconciler()
    give_up(ledger, 12, clock)
    assert ledger.failures("job") == [given_up(12)]
    one.round()
    settle_all(ledger, queue, one, LocalStore(tmp_path))
    assert ledger.status("job").state is JobState.DONE
    seven, twelve = read_failures(JobFolder(store, KEYS))
    assert seven == Failure(7, "seven", "a ring", 0, "broke")  # what is known stays
    assert twelve == Failure(12, "ring-12", "ring 12", 112, given_up(12).reason, MOST_DEATHS)


def test_a_job_without_its_plan_ends_all_the_same(
    reconciler, queue, ledger, clock, tmp_path, caplog
):
    one = reconciler()
    give_up(ledger, 12, clock)
    one.round()
    settle_all(ledger, queue, one, LocalStore(tmp_path))
    assert ledger.status("job").state is JobState.DONE
    assert read_failures(JobFolder(LocalStore(tmp_path), KEYS))[1] == given_up(12)
    assert "an image that failed has no prompt" in caplog.text


def test_the_end_of_a_job_is_told_after_it_is_written(reconciler, queue, ledger, tmp_path):
    told = []

    class Listening(Notifier):
        def tell(self, notice):
            told.append((notice.job_id, LocalStore(tmp_path).head(KEYS.done) is not None))
            self._ledger.end_delivery(notice)

    values = {field: getattr(ledger.status("job"), field) for field in ("name", "plan", "store")}
    again = NewJob("job", model="demo", shard_ends=range(1, 21), evaluations=20, **values)
    ledger.create(dataclasses.replace(again, webhook="https://example.com"))
    one = reconciler(notifier=Listening(ledger))
    one.round()
    assert told == []
    settle_all(ledger, queue, one, LocalStore(tmp_path))
    one.round()
    wait_for(lambda: told == [("job", True)], "the webhook to be told")
