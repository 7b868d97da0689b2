"""Holdings, the heart that renews them, and the settling of images in the ledger."""

from __future__ import annotations

import threading

import pytest

from jobs.errors import LedgerError
from jobs.ledger.base import Beat, ClaimAnswer, JobState, NewJob
from jobs.ledger.memory import MemoryLedger
from jobs.records import Failure, read_lines
from jobs.storage import JobKeys, LocalStore
from worker.finish import ShardRecords
from worker.heart import Heart
from worker.shard import SETTLE_EVERY_S, Holding, Settler, StopReason

KEYS = JobKeys("job")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class ShakyLedger(MemoryLedger):
    """Does not answer while it is away."""

    away = False

    def _there(self) -> None:
        if self.away:
            raise LedgerError("away")

    def settle(self, lease, done, failed=()):
        self._there()
        return super().settle(lease, done, failed)

    def heartbeat(self, leases, evaluated):
        self._there()
        return super().heartbeat(leases, evaluated)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(clock):
    ledger = ShakyLedger(clock, lease_s=60.0)
    ledger.create(NewJob("job", "job", "p" * 64, "out", "demo", [8], evaluations=80))
    ledger.publish("job", 1)
    return ledger


@pytest.fixture
def holding(ledger):
    claim = ledger.claim("job", 0, "w1")
    assert claim.answer is ClaimAnswer.RUN
    assert claim.lease is not None
    return Holding(claim.lease)


@pytest.fixture
def records(tmp_path):
    return ShardRecords(LocalStore(tmp_path), KEYS, 0, interval_s=1e9)


def a_line(index):
    return {"index": index, "path": f"images/{index}.png"}


def test_images_are_settled_after_their_records(ledger, holding, records, clock, tmp_path):
    settler = Settler(ledger, holding, records, clock=clock)
    records.add(a_line(0))
    settler.rendered(0)
    assert ledger.status("job").done == 0
    clock.now += SETTLE_EVERY_S
    records.add(a_line(1))
    settler.rendered(1)
    assert ledger.status("job").done == 2
    assert len(read_lines(LocalStore(tmp_path), KEYS.records(0))) == 2
    settler.reused(2, evaluations=10)
    settler.failed(Failure(3, "c", "a ring", 0, "broke"), evaluations=10)
    settler.finish()
    status = ledger.status("job")
    assert (status.done, status.failed) == (3, 1)
    assert ledger.failures("job")[0].reason == "broke"


def test_what_cannot_be_settled_is_settled_later(ledger, holding, records, clock):
    settler = Settler(ledger, holding, records, clock=clock)
    ledger.away = True
    clock.now += SETTLE_EVERY_S
    settler.rendered(5)
    ledger.away = False
    settler.finish()
    assert ledger.pending("job", 0, 8) == [0, 1, 2, 3, 4, 6, 7]


def test_a_lost_lease_stops_the_work(ledger, holding, records, clock):
    clock.now += 61
    ledger.expire()
    settler = Settler(ledger, holding, records, clock=clock)
    settler.rendered(0)
    settler.finish()
    assert holding.stop.is_set()
    assert holding.why is StopReason.LOST
    assert ledger.status("job").done == 0


class TestHeart:
    @pytest.fixture
    def heart(self, ledger, holding, clock):
        heart = Heart(ledger, lease_s=60.0, clock=clock)
        heart.hold(holding)
        return heart

    def test_it_renews_leases_and_tells_the_steps(self, heart, ledger, holding, clock):
        for _ in range(5):
            holding.count()
            clock.now += 50
            heart.beat()
            assert ledger.expire() == []
        assert not holding.stop.is_set()
        assert ledger.status("job").evaluated == 5

    def test_it_learns_of_a_cancelled_job(self, heart, ledger, holding):
        ledger.set_state("job", JobState.CANCELLED)
        heart.beat()
        assert holding.why is StopReason.CANCELLED

    def test_it_learns_of_a_lost_lease(self, heart, ledger, holding, clock):
        clock.now += 61
        ledger.expire()
        heart.beat()
        assert holding.why is StopReason.LOST

    def test_without_an_answer_for_a_lease_the_work_stops(self, heart, ledger, holding, clock):
        ledger.away = True
        holding.count()
        clock.now += 59
        heart.beat()
        assert not holding.stop.is_set()
        clock.now += 1
        heart.beat()
        assert holding.why is StopReason.LOST

    def test_a_short_absence_loses_no_steps(self, heart, ledger, holding, clock):
        ledger.away = True
        holding.count()
        heart.beat()
        ledger.away = False
        heart.beat()
        assert ledger.status("job").evaluated == 1

    def test_what_nobody_expects_ends_no_heart(self, ledger, holding, monkeypatch, caplog):
        heart, stop = Heart(ledger, every_s=0.001), threading.Event()
        heart.hold(holding)
        beats = []

        def odd(leases, evaluated):
            beats.append(leases)
            if len(beats) == 1:
                raise KeyError("odd")
            stop.set()
            return [Beat.HELD]

        monkeypatch.setattr(ledger, "heartbeat", odd)
        heart.run(stop)
        assert len(beats) == 2
        assert "the leases cannot be renewed" in caplog.text
        assert not holding.stop.is_set()

    def test_what_was_dropped_is_not_renewed(self, heart, ledger, holding, clock):
        heart.drop(holding)
        clock.now += 50
        heart.beat()
        clock.now += 11
        assert len(ledger.expire()) == 1


def test_draining_does_not_hide_that_the_lease_is_lost(holding):
    holding.end(StopReason.DRAINING)
    holding.end(StopReason.CANCELLED)
    assert holding.why is StopReason.DRAINING
    holding.end(StopReason.LOST)
    assert holding.why is StopReason.LOST
