"""The heart of a worker: leases renewed in time, and cancelled jobs seen long before that."""

from __future__ import annotations

import contextlib
import threading

import pytest

from jobs.errors import LedgerError
from jobs.ledger.memory.ledger import MemoryLedger
from jobs.ledger.types import JobState
from tests.ledgers import Clock, new_job, take
from tests.servers import wait_for
from worker.serve.heartbeat import LeaseHeartbeat
from worker.serve.lease import HeldLease, StopReason


class Asked(MemoryLedger):
    """Counts what it is asked."""

    looks = beats = 0
    away = False

    def states(self, job_ids):
        self.looks += 1
        if self.away:
            raise LedgerError("away")
        return super().states(job_ids)

    def heartbeat(self, leases, evaluated, worked_s=()):
        self.beats += 1
        return super().heartbeat(leases, evaluated, worked_s)


@pytest.fixture
def ledger():
    return Asked()


def hold(
    heart: LeaseHeartbeat, ledger: MemoryLedger, shard: int = 0, job_id: str = "job"
) -> HeldLease:
    held = HeldLease(take(ledger, shard, job_id=job_id))
    heart.hold(held)
    return held


@contextlib.contextmanager
def running(heart: LeaseHeartbeat):
    stop = threading.Event()
    thread = threading.Thread(target=heart.run, args=(stop,))
    thread.start()
    yield
    stop.set()
    thread.join()


def test_a_look_ends_what_is_cancelled_or_forgotten_and_nothing_else(ledger):
    heart = LeaseHeartbeat(ledger)
    held_leases = {}
    for name in ("active", "paused", "cancelled", "forgotten"):
        ledger.create(new_job(name))
        held_leases[name] = [hold(heart, ledger, shard, name) for shard in (0, 1)]
    ledger.set_state("paused", JobState.PAUSED)
    ledger.set_state("cancelled", JobState.CANCELLED)
    ledger.forget("forgotten")
    heart.look()
    assert ledger.looks == 1  # for all of them
    assert {name: [h.why for h in held] for name, held in held_leases.items()} == {
        "active": [None, None],
        "paused": [None, None],
        "cancelled": [StopReason.CANCELLED] * 2,
        "forgotten": [StopReason.LOST] * 2,
    }
    assert held_leases["cancelled"][0].stop.is_set()


def test_a_look_renews_nothing_and_loses_no_steps(ledger):
    clock = Clock()
    ledger._clock = clock
    heart = LeaseHeartbeat(ledger)
    ledger.create(new_job())
    held = hold(heart, ledger)
    held.count()
    clock.now_s += 61
    heart.look()
    assert held.take_work().evaluated == 1
    assert len(ledger.expire()) == 1


def test_the_workers_time_is_shared_among_what_it_holds(ledger):
    """Jobs pay for each second of a worker once, however many shards it has."""
    clock = Clock()
    heart = LeaseHeartbeat(ledger, clock=clock)
    for name in ("a", "b"):
        ledger.create(new_job(name))
    clock.now_s += 100  # with nothing to do
    first = hold(heart, ledger, job_id="a")
    clock.now_s += 10
    hold(heart, ledger, job_id="b")
    clock.now_s += 6
    heart.beat()
    assert (ledger.status("a").worker_s, ledger.status("b").worker_s) == (13, 3)
    clock.now_s += 4
    assert heart.take_work(first).worked_s == 2
    heart.drop(first)
    clock.now_s += 1
    heart.beat()
    assert (ledger.status("a").worker_s, ledger.status("b").worker_s) == (13, 6)


def test_time_that_could_not_be_told_is_told_later(ledger, monkeypatch):
    clock = Clock()
    heart = LeaseHeartbeat(ledger, clock=clock)
    ledger.create(new_job())
    hold(heart, ledger)
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_renew", lambda lease: (_ for _ in ()).throw(LedgerError("away")))
        clock.now_s += 5
        heart.beat()
    clock.now_s += 5
    heart.beat()
    assert ledger.status("job").worker_s == 10


def test_nothing_is_asked_while_nothing_is_held(ledger):
    LeaseHeartbeat(ledger).look()
    assert ledger.looks == 0


def test_a_ledger_that_is_away_ends_leases_only_when_they_are_old(ledger):
    clock = Clock()
    heart = LeaseHeartbeat(ledger, lease_s=60, clock=clock)
    ledger.create(new_job())
    held = hold(heart, ledger)
    ledger.away = True
    heart.look()
    assert held.why is None
    clock.now_s += 60
    heart.look()
    assert held.why is StopReason.LOST


def test_cancelling_is_seen_long_before_the_next_beat(ledger):
    heart = LeaseHeartbeat(ledger, every_s=3600, lease_s=4 * 3600)
    ledger.create(new_job())
    held = hold(heart, ledger)
    with running(heart):
        ledger.set_state("job", JobState.CANCELLED)
        wait_for(held.stop.is_set, "the look")
    assert held.why is StopReason.CANCELLED
    assert ledger.beats == 0


def test_it_looks_every_second_and_beats_in_time(ledger):
    """The clock moves by what is waited for: so many looks fit between two beats, and no more."""
    clock = Clock()
    heart = LeaseHeartbeat(ledger, every_s=15, lease_s=60, clock=clock)
    ledger.create(new_job())
    hold(heart, ledger)

    class Waits:
        def wait(self, seconds):
            clock.now_s += seconds
            return ledger.beats == 3

    heart.run(Waits())
    assert (ledger.beats, ledger.looks) == (3, 3 * 14)
    assert clock.now_s == Clock().now_s + 3 * 15 + 1
