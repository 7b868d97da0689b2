"""Holdings, the heart that renews them, and the settling of images in the ledger."""

from __future__ import annotations

import threading

import pytest

from jobs.errors import LedgerError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.record_writer import ShardRecords
from jobs.folder.records import read_lines
from jobs.ledger.memory.ledger import MemoryLedger
from jobs.ledger.types import Beat, ClaimAnswer, JobState, NewJob
from jobs.storage import LocalStore
from jobs.task import Failure
from worker.faults import Reason
from worker.serve.heartbeat import LeaseHeartbeat
from worker.serve.lease import HeldLease, StopReason
from worker.serve.shard import SETTLE_EVERY_S, LedgerReporter

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

    def heartbeat(self, leases, evaluated, worked_s=()):
        self._there()
        return super().heartbeat(leases, evaluated, worked_s)


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
def held(ledger):
    claim = ledger.claim("job", 0, "w1")
    assert claim.answer is ClaimAnswer.RUN
    assert claim.lease is not None
    return HeldLease(claim.lease)


@pytest.fixture
def records(tmp_path):
    return ShardRecords(JobFolder(LocalStore(tmp_path), KEYS), 0, interval_s=1e9)


def a_line(index):
    return {"index": index, "path": f"images/{index}.png"}


def test_images_are_settled_after_their_records(ledger, held, records, clock, tmp_path):
    reporter = LedgerReporter(ledger, held, records, clock=clock)
    records.add(a_line(0))
    reporter.rendered(0, 1.0)
    assert ledger.status("job").done == 0
    clock.now += SETTLE_EVERY_S
    records.add(a_line(1))
    reporter.rendered(1, 1.0)
    assert ledger.status("job").done == 2
    assert len(read_lines(LocalStore(tmp_path), KEYS.records(0))) == 2
    reporter.reused(2, evaluations=10)
    reporter.failed(Failure(3, "c", "a ring", 0, "broke"), 10, Reason.OTHER)
    reporter.finish()
    status = ledger.status("job")
    assert (status.done, status.failed) == (3, 1)
    assert ledger.failures("job")[0].reason == "broke"


def test_what_cannot_be_settled_is_settled_later(ledger, held, records, clock):
    reporter = LedgerReporter(ledger, held, records, clock=clock)
    ledger.away = True
    clock.now += SETTLE_EVERY_S
    reporter.rendered(5, 1.0)
    ledger.away = False
    reporter.finish()
    assert ledger.pending("job", 0, 8) == [0, 1, 2, 3, 4, 6, 7]


def test_a_lost_lease_stops_the_work(ledger, held, records, clock):
    clock.now += 61
    ledger.expire()
    reporter = LedgerReporter(ledger, held, records, clock=clock)
    reporter.rendered(0, 1.0)
    reporter.finish()
    assert held.stop.is_set()
    assert held.why is StopReason.LOST
    assert ledger.status("job").done == 0


class TestHeart:
    @pytest.fixture
    def heart(self, ledger, held, clock):
        heart = LeaseHeartbeat(ledger, lease_s=60.0, clock=clock)
        heart.hold(held)
        return heart

    def test_it_renews_leases_and_tells_the_steps(self, heart, ledger, held, clock):
        for _ in range(5):
            held.count()
            clock.now += 50
            heart.beat()
            assert ledger.expire() == []
        assert not held.stop.is_set()
        assert ledger.status("job").evaluated == 5

    def test_it_learns_of_a_cancelled_job(self, heart, ledger, held):
        ledger.set_state("job", JobState.CANCELLED)
        heart.beat()
        assert held.why is StopReason.CANCELLED

    def test_it_learns_of_a_lost_lease(self, heart, ledger, held, clock):
        clock.now += 61
        ledger.expire()
        heart.beat()
        assert held.why is StopReason.LOST

    def test_without_an_answer_for_a_lease_the_work_stops(self, heart, ledger, held, clock):
        ledger.away = True
        held.count()
        clock.now += 59
        heart.beat()
        assert not held.stop.is_set()
        clock.now += 1
        heart.beat()
        assert held.why is StopReason.LOST

    def test_a_short_absence_loses_no_steps(self, heart, ledger, held, clock):
        ledger.away = True
        held.count()
        heart.beat()
        ledger.away = False
        heart.beat()
        assert ledger.status("job").evaluated == 1

    def test_what_nobody_expects_ends_no_heart(self, ledger, held, monkeypatch, caplog):
        heart, stop = LeaseHeartbeat(ledger, every_s=0.001), threading.Event()
        heart.hold(held)
        beats = []

        def odd(leases, evaluated, worked_s):
            beats.append(leases)
            if len(beats) == 1:
                raise KeyError("odd")
            stop.set()
            return [Beat.HELD]

        monkeypatch.setattr(ledger, "heartbeat", odd)
        heart.run(stop)
        assert len(beats) == 2
        assert "the leases cannot be renewed" in caplog.text
        assert not held.stop.is_set()

    def test_what_was_dropped_is_not_renewed(self, heart, ledger, held, clock):
        heart.drop(held)
        clock.now += 50
        heart.beat()
        clock.now += 11
        assert len(ledger.expire()) == 1


def test_draining_does_not_hide_that_the_lease_is_lost(held):
    held.end(StopReason.DRAINING)
    held.end(StopReason.CANCELLED)
    assert held.why is StopReason.DRAINING
    held.end(StopReason.LOST)
    assert held.why is StopReason.LOST
