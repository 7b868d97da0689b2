"""The heart of a worker: leases renewed in time, and cancelled jobs seen long before that."""

from __future__ import annotations

import contextlib
import threading

import pytest

from jobs.errors import LedgerError
from jobs.ledger.base import JobState
from jobs.ledger.memory import MemoryLedger
from tests.ledgers import Clock, new_job, take
from tests.servers import wait_for
from worker.heart import Heart
from worker.shard import Holding, StopReason


class Asked(MemoryLedger):
    """Counts what it is asked."""

    looks = beats = 0
    away = False

    def states(self, job_ids):
        self.looks += 1
        if self.away:
            raise LedgerError("away")
        return super().states(job_ids)

    def heartbeat(self, leases, evaluated):
        self.beats += 1
        return super().heartbeat(leases, evaluated)


@pytest.fixture
def ledger():
    return Asked()


def hold(heart: Heart, ledger: MemoryLedger, shard: int = 0, job_id: str = "job") -> Holding:
    holding = Holding(take(ledger, shard, job_id=job_id))
    heart.hold(holding)
    return holding


@contextlib.contextmanager
def running(heart: Heart):
    stop = threading.Event()
    thread = threading.Thread(target=heart.run, args=(stop,))
    thread.start()
    yield
    stop.set()
    thread.join()


def test_a_look_ends_what_is_cancelled_or_forgotten_and_nothing_else(ledger):
    heart = Heart(ledger)
    holdings = {}
    for name in ("active", "paused", "cancelled", "forgotten"):
        ledger.create(new_job(name))
        holdings[name] = [hold(heart, ledger, shard, name) for shard in (0, 1)]
    ledger.set_state("paused", JobState.PAUSED)
    ledger.set_state("cancelled", JobState.CANCELLED)
    ledger.forget("forgotten")
    heart.look()
    assert ledger.looks == 1  # for all of them
    assert {name: [h.why for h in held] for name, held in holdings.items()} == {
        "active": [None, None],
        "paused": [None, None],
        "cancelled": [StopReason.CANCELLED] * 2,
        "forgotten": [StopReason.LOST] * 2,
    }
    assert holdings["cancelled"][0].stop.is_set()


def test_a_look_renews_nothing_and_loses_no_steps(ledger):
    clock = Clock()
    ledger._clock = clock
    heart = Heart(ledger)
    ledger.create(new_job())
    holding = hold(heart, ledger)
    holding.count()
    clock.now_s += 61
    heart.look()
    assert holding.take_evaluated() == 1
    assert len(ledger.expire()) == 1


def test_nothing_is_asked_while_nothing_is_held(ledger):
    Heart(ledger).look()
    assert ledger.looks == 0


def test_a_ledger_that_is_away_ends_leases_only_when_they_are_old(ledger):
    clock = Clock()
    heart = Heart(ledger, lease_s=60, clock=clock)
    ledger.create(new_job())
    holding = hold(heart, ledger)
    ledger.away = True
    heart.look()
    assert holding.why is None
    clock.now_s += 60
    heart.look()
    assert holding.why is StopReason.LOST


def test_cancelling_is_seen_long_before_the_next_beat(ledger):
    heart = Heart(ledger, every_s=3600, lease_s=4 * 3600)
    ledger.create(new_job())
    holding = hold(heart, ledger)
    with running(heart):
        ledger.set_state("job", JobState.CANCELLED)
        wait_for(holding.stop.is_set, "the look")
    assert holding.why is StopReason.CANCELLED
    assert ledger.beats == 0


def test_it_looks_every_second_and_beats_in_time(ledger):
    """The clock moves by what is waited for: so many looks fit between two beats, and no more."""
    clock = Clock()
    heart = Heart(ledger, every_s=15, lease_s=60, clock=clock)
    ledger.create(new_job())
    hold(heart, ledger)

    class Waits:
        def wait(self, seconds):
            clock.now_s += seconds
            return ledger.beats == 3

    heart.run(Waits())
    assert (ledger.beats, ledger.looks) == (3, 3 * 14)
    assert clock.now_s == Clock().now_s + 3 * 15 + 1
