"""What a worker counts while it renders, and the figures of the queue."""

from __future__ import annotations

import threading

import pytest
import torch
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from jobs.errors import LedgerError
from jobs.folder.layout import JobKeys
from jobs.ledger.memory.ledger import MemoryLedger
from jobs.ledger.types import ClaimAnswer, JobState, NewJob, WorkerInfo
from sd_core.engine.engine import Engine
from sd_core.engine.request import Request
from sd_core.spec import Sampling
from tests.ledgers import Clock, take
from tests.sd_core.small import ODD, small_model
from tests.servers import wait_for
from tests.worker.serve.services import Service
from worker.faults import Reason, reason_of
from worker.monitor.metrics import Metrics
from worker.monitor.presence import ENDED_SHOWN_S, JOBS_SHOWN, QueueReader, Reporter
from worker.serve.lease import StopReason

CONTRACT = {
    "sdbatch_images_total": {"model"},
    "sdbatch_images_reused_total": {"model"},
    "sdbatch_image_failures_total": {"model", "reason"},
    "sdbatch_image_seconds_bucket": {"model", "le"},
    "sdbatch_evaluation_seconds_bucket": {"model", "le"},
    "sdbatch_batch_rows_used_total": {"model"},
    "sdbatch_batch_rows_available_total": {"model"},
    "sdbatch_upload_seconds_bucket": {"le"},
    "sdbatch_upload_bytes_total": set(),
    "sdbatch_leases_lost_total": set(),
    "sdbatch_claims_total": {"answer"},
    "sdbatch_leases": set(),
    "sdbatch_in_flight_images": set(),
    "sdbatch_pending_images": {"model"},
    "sdbatch_leased_shards": {"model"},
    "sdbatch_published_shards": {"model"},
    "sdbatch_workers": {"model"},
    "sdbatch_oldest_job_seconds": {"model"},
    "sdbatch_failed_images": {"model"},
    "sdbatch_engine_stalled_seconds": set(),
    "sdbatch_accelerator_busy_seconds_total": {"device"},
    "sdbatch_graph_captures_total": {"device"},
    "sdbatch_ledger_silent_seconds": set(),
    "sdbatch_job_worker_seconds_total": {"job_id", "submitter"},
    "sdbatch_worker_info": {"owner", "model", "digest", "device", "version"},
}
"""What dashboards and alerts are built on."""


@pytest.fixture
def service(tmp_path):
    with Service(tmp_path) as service:
        yield service


def samples(metrics: Metrics) -> dict[str, set[str]]:
    """Name of each sample of ours, and its labels."""
    text = generate_latest(metrics.registry).decode()
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("sdbatch_") and not sample.name.endswith("_created")
    }


def test_every_series_of_the_contract_is_there_and_no_other(service):
    service.enter()
    service.metrics.describe(owner="w1", model="odd", digest="5a", device="cpu", version="1")
    service.metrics.watch(service.engine, leases=lambda: 0)
    Reporter(service.worker, service.metrics).report()
    found = samples(service.metrics)
    derived = {name for name in found if name.endswith(("_seconds_sum", "_seconds_count"))}
    assert {name: labels for name, labels in found.items() if name not in derived} == CONTRACT


def test_memory_of_the_device_has_no_series_on_a_cpu(service):
    service.metrics.watch(service.engine, leases=lambda: 0)
    assert "sdbatch_accelerator_memory_bytes" not in samples(service.metrics)


def test_a_rendered_shard_is_counted(service):
    service.enter()
    service.handle()
    assert service.value("sdbatch_images_total", model="odd") == 2
    assert service.value("sdbatch_images_reused_total", model="odd") == 0
    assert service.value("sdbatch_image_seconds_count", model="odd") == 2
    assert service.value("sdbatch_image_seconds_sum", model="odd") > 0
    images = list(service.store.list(JobKeys("job").images_prefix))
    size = sum(image.size_bytes for image in images)
    assert service.value("sdbatch_upload_bytes_total") == size > 0
    assert service.value("sdbatch_upload_seconds_count") == 2
    assert service.value("sdbatch_in_flight_images") == 0
    service.metrics.watch(service.engine, leases=lambda: 0)
    busy_s = service.value("sdbatch_accelerator_busy_seconds_total", device="cpu")
    assert busy_s > service.value("sdbatch_evaluation_seconds_sum", model="odd") > 0  # decodes too
    assert service.value("sdbatch_graph_captures_total", device="cpu") == 0
    batches = service.value("sdbatch_evaluation_seconds_count", model="odd")
    used = service.value("sdbatch_batch_rows_used_total", model="odd")
    rows = service.engine.rows_of(Sampling(width=64, height=64))
    assert batches >= 4  # of each image, which may share them
    assert used == 2 * 2 * 4  # images, rows of each, evaluations
    assert service.value("sdbatch_batch_rows_available_total", model="odd") == batches * rows


def test_images_in_the_store_already_are_counted_apart(service):
    service.enter("first")
    service.handle("first")
    for image in service.store.list(JobKeys("first").images_prefix):
        path = image.key.removeprefix("first/")
        service.enter("second")
        service.store.put(f"second/{path}", service.store.get(image.key))
    service.handle("second")
    assert service.value("sdbatch_images_total", model="odd") == 2
    assert service.value("sdbatch_images_reused_total", model="odd") == 2
    assert service.ledger.status("second").done == 2


def test_failed_images_are_counted_by_their_reason(service, monkeypatch):
    service.enter()
    monkeypatch.setattr(
        service.engine.model, "denoise", lambda x, *_: torch.full_like(x, float("nan"))
    )
    service.handle()
    failures = "sdbatch_image_failures_total"
    assert service.value(failures, model="odd", reason="not_finite") == 2
    assert service.value(failures, model="odd", reason="other") == 0
    assert service.ledger.status("job").failed == 2
    assert service.value("sdbatch_in_flight_images") == 0


@pytest.mark.parametrize(
    ("error", "rendered", "reason"),
    [
        (ValueError("inputs/a.png is no readable image"), False, Reason.INPUT),
        (ValueError("too large for jpeg"), True, Reason.FORMAT),
        (torch.OutOfMemoryError("CUDA out of memory"), False, Reason.MEMORY),
        (ArithmeticError("no longer finite"), False, Reason.NOT_FINITE),
        (KeyError("what"), True, Reason.OTHER),
    ],
)
def test_reasons_are_few_and_fixed(error, rendered, reason):
    assert reason_of(error, rendered=rendered) is reason


def test_leases_held_and_lost_are_counted(service):
    service.metrics.watch(service.engine, leases=lambda: len(service.worker.heartbeat.held_leases))
    service.enter()
    seen = []

    head = service.store.head

    def lose(key):
        (held,) = service.worker.heartbeat.held_leases
        seen.append(service.value("sdbatch_leases"))
        held.end(StopReason.LOST)
        return head(key)

    service.store.head = lose
    service.handle()
    assert seen[0] == 1
    assert service.value("sdbatch_leases") == 0
    assert service.value("sdbatch_leases_lost_total") == 1


def test_the_engine_tells_when_it_stands_still():
    model = small_model(ODD)
    begun, go_on = threading.Event(), threading.Event()

    def on_step(done, total):
        begun.set()
        go_on.wait()

    request = Request("a ring", Sampling(width=64, height=64, steps=2))
    with Engine(model) as engine:
        assert engine.alive
        assert engine.stalled_s() == 0
        future = engine.submit(request, on_step=on_step)
        begun.wait()
        first = engine.stalled_s()
        wait_for(lambda: engine.stalled_s() > first, "time to pass")
        go_on.set()
        future.result()
        wait_for(lambda: engine.stalled_s() == 0, "the engine to be idle")
    assert not engine.alive


class TestQueue:
    @pytest.fixture
    def clock(self):
        return Clock()

    @pytest.fixture
    def ledger(self, clock):
        return MemoryLedger(clock, lease_s=60.0)

    def job(self, ledger, name, model="odd", ends=(2, 4, 6)):
        ledger.create(NewJob(name, name, "p" * 64, "out", model, ends, evaluations=60))

    def test_figures_are_sums_over_active_jobs_of_a_model(self, ledger, clock):
        reader = QueueReader(ledger)
        self.job(ledger, "a")
        clock.now_s += 100
        self.job(ledger, "b")
        self.job(ledger, "c", model="even")
        self.job(ledger, "paused")
        ledger.set_state("paused", JobState.PAUSED)
        for name in "abc":
            ledger.publish(name, 2)
        ledger.settle(take(ledger, 0, job_id="a"), [0], [])
        figures = reader.read().models
        assert set(figures) == {"odd", "even"}
        odd = figures["odd"]
        assert (odd.pending_images, odd.leased_shards, odd.published_shards) == (11, 1, 3)
        assert odd.oldest_job_s == pytest.approx(100)
        assert figures["even"].oldest_job_s == 0

    def test_workers_that_stopped_are_not_counted(self, ledger):
        for number, state in enumerate(("idle", "busy", "stopped: the store is away")):
            info = WorkerInfo(f"w{number}", "host", 1, "cpu", "odd", 0, 0, state)
            ledger.worker_seen(info, 20)
        assert QueueReader(ledger).read().models["odd"].workers == 2

    def test_age_is_by_the_ledgers_clock_and_needs_no_events(self, ledger, clock):
        self.job(ledger, "a")
        self.job(ledger, "b", model="even")
        clock.now_s += 500
        # A worker that begins only now, to a queue in which nothing happens.
        assert QueueReader(ledger).read().models["odd"].oldest_job_s == pytest.approx(500)
        clock.now_s += 30
        assert QueueReader(ledger).read().models["even"].oldest_job_s == pytest.approx(530)

    def test_a_clock_that_is_set_back_gives_no_negative_age(self, ledger, clock):
        self.job(ledger, "a")
        clock.now_s -= 100
        assert QueueReader(ledger).read().models["odd"].oldest_job_s == 0

    def test_a_settled_job_has_no_age(self, ledger, clock):
        reader = QueueReader(ledger)
        self.job(ledger, "a", ends=(2,))
        ledger.publish("a", 1)
        clock.now_s += 9
        ledger.settle(take(ledger, 0, job_id="a"), [0, 1], [])
        figures = reader.read().models["odd"]
        assert (figures.pending_images, figures.oldest_job_s) == (0, 0)

    def test_seconds_of_workers_by_job(self, service):
        service.enter("long", images=4)
        service.enter("paused")
        service.ledger.set_state("paused", JobState.PAUSED)
        lease = take(service.ledger, 0, job_id="long")
        service.ledger.heartbeat([lease], [9], [12.5])
        Reporter(service.worker, service.metrics).report()

        def shown(job_id: str) -> float | None:
            labels = {"job_id": job_id, "submitter": ""}
            return service.value("sdbatch_job_worker_seconds_total", **labels)

        assert (shown("long"), shown("paused"), shown("nobody")) == (12.5, 0.0, None)

    def test_jobs_that_ended_long_ago_and_those_beyond_the_latest_are_not_shown(
        self, ledger, clock
    ):
        for number in range(3):
            self.job(ledger, f"old-{number}")
            ledger.set_state(f"old-{number}", JobState.CANCELLED)
            clock.now_s += ENDED_SHOWN_S / 2
        found = [job.job_id for job in QueueReader(ledger).read().jobs]
        assert found == ["old-2"]
        for number in range(JOBS_SHOWN):
            clock.now_s += 1
            self.job(ledger, f"new-{number}")
        found = [job.job_id for job in QueueReader(ledger).read().jobs]
        assert found == [f"new-{number}" for number in reversed(range(JOBS_SHOWN))]

    def test_without_the_ledger_the_last_figures_stay(self, service, monkeypatch):
        service.enter()
        stop = threading.Event()
        stop.set()
        reporter = Reporter(service.worker, service.metrics)
        reporter.run(stop)
        assert reporter.away is None
        assert service.ledger.workers()[0].state == "idle"

        def away(*_):
            raise LedgerError("no answer")

        monkeypatch.setattr(service.ledger, "jobs", away)
        reporter.run(stop)
        assert reporter.away == "no answer"
        assert service.value("sdbatch_pending_images", model="odd") == 4

    def test_what_nobody_expects_ends_no_reporting(self, service, monkeypatch, caplog):
        reporter, stop = Reporter(service.worker, service.metrics), threading.Event()
        asked = []

        def odd():
            asked.append(reporter.away)
            if len(asked) == 1:
                raise KeyError("odd")
            stop.set()
            return []

        monkeypatch.setattr(service.ledger, "jobs", odd)
        reporter.run(stop, every_s=0.001)
        assert asked[:2] == [None, "KeyError"]
        assert reporter.away is None
        assert "reporting failed" in caplog.text

    def test_figures_tell_how_old_they_are(self, service, monkeypatch, clock):
        reporter = Reporter(service.worker, service.metrics, clock)
        clock.now_s += 7
        assert service.value("sdbatch_ledger_silent_seconds") == 7  # never told yet
        reporter.report()
        assert service.value("sdbatch_ledger_silent_seconds") == 0

        def full(*_):
            raise LedgerError("it is full")

        monkeypatch.setattr(service.ledger, "worker_seen", full)
        clock.now_s += 30
        with pytest.raises(LedgerError, match="full"):
            reporter.report()
        assert service.value("sdbatch_ledger_silent_seconds") == 30


def test_claims_have_a_series_for_every_answer():
    metrics = Metrics("odd")
    metrics.claimed(ClaimAnswer.BUSY)
    value = metrics.registry.get_sample_value
    assert value("sdbatch_claims_total", {"answer": "busy"}) == 1
    assert all(value("sdbatch_claims_total", {"answer": a.value}) is not None for a in ClaimAnswer)
