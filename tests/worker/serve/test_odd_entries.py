"""Entries of a ledger that a newer version wrote, or that somebody damaged: of one job only."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from dataclasses import asdict

import pytest

from jobs.cli.root import main
from jobs.errors import DamagedLedgerError, ExitCode, QuotaError
from jobs.ledger.redis.ledger import RedisLedger
from jobs.ledger.types import Beat, JobState, WorkerInfo
from jobs.queue.messages import CeleryQueue, to_message
from jobs.storage import LocalStore
from tests.ledgers import failure, new_job, run_out, take
from worker import tasks
from worker.monitor.presence import QueueReader
from worker.reconcile.reconciler import Reconciler
from worker.reconcile.webhooks import Notifier
from worker.serve.heartbeat import LeaseHeartbeat
from worker.serve.lease import HeldLease, StopReason

HOOK = "https://hook.example/x"


@pytest.fixture
def client(valkey):
    with valkey.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def ledger(client):
    return RedisLedger(client)


class Queue:
    """Messages by model."""

    def __init__(self):
        self.messages = defaultdict(list)

    def send(self, model, shards):
        self.messages[model] += shards

    def length(self, model):
        return len(self.messages[model])


def record(job):
    return f"sdbatch:job:{job}"


UNREADABLE = {
    "no total": lambda client, job: client.hdel(record(job), "total"),
    "no state": lambda client, job: client.hdel(record(job), "state"),
    "a state of a newer version": lambda client, job: client.hset(record(job), "state", "frozen"),
    "an odd total": lambda client, job: client.hset(record(job), "total", "many"),
    "a total below zero": lambda client, job: client.hset(record(job), "total", "-1"),
    "an odd count": lambda client, job: client.hset(record(job), "done", "x"),
    "no count": lambda client, job: client.hdel(record(job), "failed"),
    "a store in no encoding": lambda client, job: client.hset(record(job), "store", b"\xff"),
    "a number of any length": lambda client, job: client.hset(record(job), "total", "9" * 5000),
    "no fields": lambda client, job: (client.delete(record(job)), client.hset(record(job), "x", 1)),
    "another type": lambda client, job: (client.delete(record(job)), client.set(record(job), "x")),
    "no list of those published": lambda client, job: client.set(f"sdbatch:published:{job}", "x"),
    "no table of claims": lambda client, job: (
        client.delete(f"sdbatch:claims:{job}"),
        client.set(f"sdbatch:claims:{job}", "x"),
    ),
}
"""What keeps a job from being read."""

DAMAGED = UNREADABLE | {
    "an odd evaluation count": lambda client, job: client.hset(record(job), "evaluated", "x"),
    "no bounds": lambda client, job: client.delete(f"sdbatch:bounds:{job}"),
    "no bitmap": lambda client, job: (
        client.delete(f"sdbatch:done:{job}"),
        client.rpush(f"sdbatch:done:{job}", "x"),
    ),
    "an odd claim": lambda client, job: client.hset(f"sdbatch:claims:{job}", "0", "x"),
    "odd deaths": lambda client, job: client.hset(f"sdbatch:deaths:{job}", "0", "x"),
    "no events": lambda client, job: client.set(f"sdbatch:events:{job}", "x"),
    "an odd count of notices": lambda client, job: client.hset(record(job), "notices", "x"),
}


@pytest.mark.parametrize("damage", UNREADABLE.values(), ids=UNREADABLE)
def test_a_job_that_cannot_be_read_says_so_and_the_others_are_as_they_are(client, ledger, damage):
    for name in ("sound", "odd"):
        ledger.create(new_job(name))
    before = ledger.status("sound")
    damage(client, "odd")
    odd, sound = ledger.jobs()
    assert sound == before
    assert (odd.job_id, odd.state) == ("odd", JobState.UNKNOWN)
    assert odd.error is not None
    with pytest.raises(DamagedLedgerError, match="odd: its entry in the ledger"):
        ledger.status("odd")
    assert ledger.states(["sound", "odd", "none"])[::2] == [JobState.ACTIVE, None]
    assert ledger.forget("odd")
    assert ledger.jobs() == [before]


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_job_keeps_no_other_from_going_on(client, ledger, tmp_path, damage):
    """Every one of them has a lease that ran out, and a webhook that is to be told."""
    names = ("a", "odd", "z")
    for name in names:
        ledger.create(new_job(name, webhook=HOOK))
        ended = f"{name}-ended"
        ledger.create(new_job(ended, webhook=HOOK))
        ledger.set_state(ended, JobState.CANCELLED)
        run_out(ledger, take(ledger, 0, job_id=name))
    ledger.create(new_job("odd-settled"), done=range(10))
    for name in ("odd", "odd-ended", "odd-settled"):
        damage(client, name)
    queue, told = Queue(), []
    notifier = Notifier(ledger)
    notifier.tell = lambda notice: (told.append(notice.job_id), ledger.end_delivery(notice))
    reconciler = Reconciler(
        ledger, queue, lambda _: LocalStore(tmp_path), owner="w1", slots=100, notifier=notifier
    )
    for _ in range(4):
        reconciler.round()
        notifier.wait()
    over = threading.Event()
    over.set()
    reconciler.run(over)  # until what it began is ended
    published = {(shard.job_id, shard.number) for shard in queue.messages["demo"]}
    assert {(name, number) for name in "az" for number in range(3)} <= published
    assert {"a-ended", "z-ended"} <= set(told)
    assert client.zcard("sdbatch:leases") == 0
    QueueReader(ledger).read()


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_job_costs_no_other_its_lease(client, ledger, damage):
    heart = LeaseHeartbeat(ledger)
    held_leases = {}
    for name in ("a", "odd", "z"):
        ledger.create(new_job(name))
        held_leases[name] = HeldLease(take(ledger, 0, job_id=name))
        heart.hold(held_leases[name])
    damage(client, "odd")
    heart.look()
    heart.beat()
    assert held_leases["a"].why is held_leases["z"].why is None
    assert held_leases["odd"].why in (None, StopReason.LOST)


def test_a_refusal_of_the_server_is_no_damage(client, ledger):
    """A lease is not lost by it, nor is it ended."""
    ledger.create(new_job())
    lease = take(ledger, 0)
    client.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(Exception, match="too few replicas") as caught:
            ledger.heartbeat([lease], [0])
        assert not isinstance(caught.value, DamagedLedgerError)
    finally:
        client.config_set("min-replicas-to-write", 0)
    assert ledger.heartbeat([lease], [0]) == [Beat.HELD]


class TestNewer:
    """Fields that this version does not know are left alone."""

    def test_of_jobs(self, client, ledger):
        ledger.create(new_job())
        before = ledger.status("job")
        client.hset("sdbatch:job:job", "colour", "blue")
        assert ledger.jobs() == [before]

    def test_of_workers(self, client, ledger):
        info = WorkerInfo("w1", "host", 1, "cpu", "demo", 0, 3, "idle")
        ledger.worker_seen(info, 60)
        newer = json.loads(client.hget("sdbatch:worker", "w1")) | {"colour": "blue"}
        client.hset("sdbatch:worker", "w1", json.dumps(newer))
        assert ledger.workers() == [info]

    def test_of_failures_and_events(self, client, ledger):
        ledger.create(new_job())
        ledger.settle(take(ledger, 0), [], [failure(1)])
        newer = json.loads(client.hget("sdbatch:failures:job", "1")) | {"colour": "blue"}
        client.hset("sdbatch:failures:job", "1", json.dumps(newer))
        assert ledger.failures("job") == [failure(1)]
        client.xadd("sdbatch:events:job", {"kind": "painted", "colour": "blue"})
        assert ledger.events("job")[-1].kind == "painted"

    def test_of_messages(self, monkeypatch, ledger):
        """What a newer submitter sends, a worker of before takes."""
        ledger.create(new_job())
        (shard,) = ledger.publish("job", 1)
        handled = []
        worker = type("Worker", (), {"handle": lambda self, shard: handled.append(shard) or True})
        monkeypatch.setattr(tasks.process, "worker", worker)
        tasks.render_shard(to_message(shard) | {"colour": "blue"})
        tasks.render_shard(to_message(shard) | {"version": 1})
        assert handled == [shard, shard]

    def test_a_message_whose_meaning_changed_is_refused_clearly(self, monkeypatch, caplog, ledger):
        ledger.create(new_job())
        (shard,) = ledger.publish("job", 1)
        tasks.render_shard(to_message(shard) | {"version": 2})
        assert "a message of version 2; this worker reads version 1: give it a newer sdbatch" in (
            caplog.text
        )


def _worker_json(images_per_s: str) -> bytes:
    worker = asdict(WorkerInfo("w2", "host", 1, "cpu", "demo", 1, 3, "busy"))
    return json.dumps(worker | {"images_per_s": 4711}).replace("4711", images_per_s).encode()


ODD_WORKERS = {
    "no JSON": b"x",
    "no object": b"[1]",
    "nothing": b"{}",
    "an odd number": b'{"name": "w2", "model": "demo", "images": "many"}',
    "in no encoding": b"\xff",
    "nested": b"[" * 60_000,
    **{f"a speed of {speed}": _worker_json(speed) for speed in ("NaN", "Infinity", "-1", "1e300")},
    "too long": b'{"state": "' + b"x" * 100_000 + b'"}',
}


@pytest.mark.parametrize("entry", ODD_WORKERS.values(), ids=ODD_WORKERS)
def test_a_worker_that_cannot_be_read_is_listed_as_such(client, ledger, entry):
    info = WorkerInfo("w1", "host", 1, "cpu", "demo", 0, 3, "idle")
    for name in ("w1", "w2"):
        ledger.worker_seen(WorkerInfo(name, "host", 1, "cpu", "demo", 0, 3, "idle"), 60)
    client.hset("sdbatch:worker", "w2", entry)
    first, second = ledger.workers()
    assert first == info
    assert (second.name, second.model) == ("w2", "")
    assert second.state.startswith("unknown")


@pytest.mark.parametrize("quota", ["many", "", "-1", "1e9", " 20", "9" * 16, b"\xff"])
def test_a_quota_that_cannot_be_read_lets_its_submitter_alone_not_pass(client, ledger, quota):
    client.hset("sdbatch:quotas", "anna", quota)
    assert ledger.quotas() == {"anna": 0}
    with pytest.raises(QuotaError, match="anna may have 0 images to do"):
        ledger.create(new_job(submitter="anna"))
    assert ledger.jobs() == []
    ledger.create(new_job(submitter="ben"))
    ledger.set_quota("anna", 10)
    ledger.create(new_job("another", submitter="anna"))


def test_a_job_that_cannot_be_read_costs_no_quota(client, ledger):
    ledger.set_quota("anna", 10)
    for name in ("odd", "cut"):
        ledger.create(new_job(name, [1], submitter="anna"))
    client.hset("sdbatch:job:cut", "total", "many")
    client.delete("sdbatch:job:odd")
    client.set("sdbatch:job:odd", "x")
    ledger.create(new_job(submitter="anna"))


@pytest.mark.parametrize("entry", [b"x", b"{}", b'{"index": "one"}', b"[" * 60_000, b"\xff"])
def test_a_failure_that_cannot_be_read_is_still_one(client, ledger, entry):
    ledger.create(new_job())
    ledger.settle(take(ledger, 0), [], [failure(1), failure(2)])
    client.hset("sdbatch:failures:job", "1", entry)
    first, second = ledger.failures("job")
    assert (first.index, second) == (1, failure(2))
    assert "cannot be read" in first.reason


class TestCommands:
    @pytest.fixture
    def said(self, client, ledger, valkey, monkeypatch, capsys):
        monkeypatch.setenv("SDBATCH_REDIS", valkey.url)
        for name in ("sound", "odd"):
            ledger.create(new_job(name))
        client.hdel("sdbatch:job:odd", "total")
        ledger.worker_seen(WorkerInfo("w1", "host", 1, "cpu", "demo", 0, 3, "idle"), 60)
        client.hset("sdbatch:worker", "w1", b"x")

        def said(*words, code=ExitCode.DONE):
            assert main(list(words)) == code
            output = capsys.readouterr()
            return output.out + output.err

        return said

    def test_jobs(self, said):
        rows = [line.split() for line in said("jobs").splitlines()]
        assert ["odd", "unknown"] in rows
        assert "sound" in said("jobs")
        assert "total is missing" in said("jobs")

    def test_workers(self, said):
        assert "unknown" in said("workers")

    def test_status(self, said):
        text = said("status", "odd", code=ExitCode.LEDGER)
        assert "odd: its entry in the ledger cannot be read: total is missing" in text
        assert "sdbatch forget odd --force" in text
        assert "sound" in said("status", "sound")

    @pytest.mark.parametrize("command", ["watch", "pause", "cancel", "retry", "failures"])
    def test_what_needs_the_job_says_the_same(self, said, command):
        assert "total is missing" in said(command, "odd", code=ExitCode.LEDGER)

    def test_forget(self, said):
        said("forget", "odd", "--force")
        assert "odd" not in said("jobs")


def test_a_queue_that_is_no_list_is_of_one_model_only(client, valkey, ledger, tmp_path):
    for name, model in (("a", "one"), ("b", "two"), ("c", "three")):
        ledger.create(new_job(name, model=model))
    client.set("sdbatch.two", "x")
    queue = CeleryQueue(valkey.url)
    reconciler = Reconciler(ledger, queue, lambda _: LocalStore(tmp_path), owner="w1", slots=1)
    reconciler.round()
    assert queue.length("one") == queue.length("three") == 3
