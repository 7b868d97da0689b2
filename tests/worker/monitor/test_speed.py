"""Speed of a worker, from its reports."""

from __future__ import annotations

import pytest

from jobs.ledger.types import Lease, WorkerInfo
from tests.ledgers import Clock
from tests.worker.serve.services import Service
from worker.monitor.presence import Reporter
from worker.monitor.speed import LEAST_S, WINDOW_S, Speed
from worker.serve.lease import HeldLease


def test_one_report_says_nothing():
    assert Speed().of(100.0, 7) is None


def test_nothing_of_a_moment():
    speed = Speed()
    speed.of(100.0, 4)
    assert speed.of(100.1, 8) is None
    assert speed.of(100.0 + LEAST_S, 8) == pytest.approx(4 / LEAST_S)


def test_of_the_last_minute():
    speed = Speed()
    for at_s in range(0, 100, 5):  # two images in five seconds, and then one
        last = speed.of(float(at_s), 2 * at_s // 5 if at_s < 40 else 16 + (at_s - 40) // 5)
    assert last == pytest.approx(13 / WINDOW_S)


def test_nothing_while_no_image_ends():
    speed = Speed()
    speed.of(0.0, 4)
    assert speed.of(30.0, 4) is None


def test_a_pause_is_no_part_of_it():
    speed = Speed()
    speed.of(0.0, 0)
    speed.of(10.0, 20)
    speed.rest()
    assert speed.of(40.0, 20) is None
    assert speed.of(50.0, 30) == pytest.approx(1.0)


def test_a_worker_reports_it_while_it_holds_shards(tmp_path):
    clock = Clock()

    def reported() -> WorkerInfo:
        reporter.report()
        return service.ledger.workers()[0]

    with Service(tmp_path) as service:
        reporter = Reporter(service.worker, service.metrics, clock)
        held = HeldLease(Lease("job", 0, 1, "w1"))
        service.worker.heartbeat.hold(held)
        assert reported().images_per_s is None
        service.metrics.rendered(0, 1.0)
        service.metrics.reused(1, 4)
        clock.now_s += 4
        assert reported().images_per_s == pytest.approx(0.5)
        assert reported().images == 2
        service.worker.heartbeat.drop(held)
        clock.now_s += 4
        assert reported().images_per_s is None
