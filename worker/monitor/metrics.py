"""Metrics of a worker, under the names that dashboards and alerts use.

Everything is counted always, which costs about a microsecond; it is served only where the settings
say so (`worker.monitor.health`). The figures of the queue are the ledger's, so all workers export
the same ones: take the max over workers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jobs.ledger.types import ClaimAnswer
from jobs.task import Failure
from sd_core.engine.engine import Batch, Engine
from worker.faults import Reason
from worker.observer import Observer

IMAGE_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
EVALUATION_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25)
UPLOAD_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass(frozen=True)
class QueueFigures:
    """One model's part of the ledger, over its active jobs.

    pending_images: neither done nor failed. leased_shards: that workers hold; published_shards:
    whose message waits for a worker. workers: that take shards. failed_images: given up.
    oldest_job_s: age of the oldest job that is not settled, 0 without one.
    """

    pending_images: int = 0
    leased_shards: int = 0
    published_shards: int = 0
    failed_images: int = 0
    workers: int = 0
    oldest_job_s: float = 0.0


@dataclass(frozen=True)
class JobFigures:
    """A job's part of the ledger. worker_s: seconds of all workers together."""

    job_id: str
    submitter: str
    worker_s: float


class Queue(NamedTuple):
    """Figures of the ledger by model, and of the jobs that go on or ended lately."""

    models: Mapping[str, QueueFigures]
    jobs: Sequence[JobFigures]


class Metrics(Observer):
    """The metrics of one worker process, in a registry of their own; threads may count at the same
    time.

    model: as the workers' model list names it. queue: the latest known figures.
    batch: the last one. finished: images that were rendered, or found in the store.
    """

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self.queue = Queue({}, ())
        self.batch: Batch | None = None
        self.finished = 0
        self._lock = threading.Lock()  # of finished
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(_QueueCollector(lambda: self.queue))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

        images = counter("sdbatch_images", "Images rendered and stored", "model")
        reused = counter("sdbatch_images_reused", "Images that were stored already", "model")
        image_s = histogram(
            "sdbatch_image_seconds", "From admission to the last pixel", IMAGE_S, "model"
        )
        evaluation_s = histogram(
            "sdbatch_evaluation_seconds", "One model evaluation of a batch", EVALUATION_S, "model"
        )
        used = counter("sdbatch_batch_rows_used", "Batch rows that held an image", "model")
        available = counter("sdbatch_batch_rows_available", "Batch rows, with padding", "model")
        failures = counter("sdbatch_image_failures", "Images that failed", "model", "reason")
        claims = counter("sdbatch_claims", "Deliveries, by the ledger's answer", "answer")
        # With their labels, series are there from the start, at 0: a rate needs the step from it.
        self._images, self._reused = images.labels(model), reused.labels(model)
        self._image_s, self._evaluation_s = image_s.labels(model), evaluation_s.labels(model)
        self._used, self._available = used.labels(model), available.labels(model)
        self._failures = {reason: failures.labels(model, reason.value) for reason in Reason}
        self._claims = {answer: claims.labels(answer.value) for answer in ClaimAnswer}
        self._upload_s = histogram("sdbatch_upload_seconds", "One PUT of an image", UPLOAD_S)
        self._upload_bytes = counter("sdbatch_upload_bytes", "Bytes of images that were put")
        self._leases_lost = counter("sdbatch_leases_lost", "Leases that ran out under this worker")
        self._leases = gauge("sdbatch_leases", "Shards held now")
        self._in_flight = gauge("sdbatch_in_flight_images", "Images submitted and not yet stored")
        self._stalled_s = gauge(
            "sdbatch_engine_stalled_seconds", "Since the engine's work last moved on; 0 when idle"
        )
        self._silent_s = gauge(
            "sdbatch_ledger_silent_seconds", "Since the ledger last took this worker's report"
        )
        self._info = gauge(
            "sdbatch_worker_info", "1", "owner", "model", "digest", "device", "version"
        )

    def describe(self, *, owner: str, model: str, digest: str, device: str, version: str) -> None:
        """Says whose metrics these are."""
        self._info.labels(owner, model, digest, device, version).set(1)

    def watch(self, engine: Engine, *, leases: Callable[[], float]) -> None:
        """Set what is asked at every scrape instead of counted."""
        self._leases.set_function(leases)
        self._stalled_s.set_function(engine.stalled_s)
        self.registry.register(_EngineWork(engine))
        if engine.model.device.type == "cuda":
            self.registry.register(_CudaMemory(engine.model.device))

    def watch_reports(self, silent_s: Callable[[], float]) -> None:
        """How old the queue's figures are: without the ledger, the last ones stay."""
        self._silent_s.set_function(silent_s)

    def claimed(self, answer: ClaimAnswer) -> None:
        self._claims[answer].inc()

    def lease_lost(self) -> None:
        self._leases_lost.inc()

    def evaluated(self, batch: Batch) -> None:
        """The engine evaluated a batch once."""
        self.batch = batch
        self._evaluation_s.observe(batch.seconds)
        self._used.inc(batch.rows_used)
        self._available.inc(batch.rows)

    def submitted(self) -> None:
        self._in_flight.inc()

    def left(self) -> None:
        self._in_flight.dec()

    def rendered(self, index: int, seconds: float) -> None:
        self._finished(self._images)
        self._image_s.observe(seconds)

    def reused(self, index: int, evaluations: int) -> None:
        self._finished(self._reused)

    def _finished(self, how: Counter) -> None:
        how.inc()
        with self._lock:
            self.finished += 1

    def failed(self, failure: Failure, evaluations: int, reason: Reason) -> None:
        self._failures[reason].inc()

    def uploaded(self, seconds: float, size_bytes: int) -> None:
        self._upload_s.observe(seconds)
        self._upload_bytes.inc(size_bytes)


class _QueueCollector(Collector):
    """The ledger's figures as they were last read; models and jobs may come and go between
    scrapes.
    """

    def __init__(self, queue: Callable[[], Queue]) -> None:
        self._queue = queue

    def collect(self) -> Iterable[Metric]:
        def family(name: str, text: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"sdbatch_{name}", text, labels=["model"])

        pending = family("pending_images", "Images of active jobs neither done nor failed")
        leased = family("leased_shards", "Shards that workers hold")
        published = family("published_shards", "Shards whose message waits for a worker")
        failed = family("failed_images", "Images of active jobs that were given up")
        workers = family("workers", "Workers that take shards")
        oldest = family("oldest_job_seconds", "Age of the oldest job that is not settled")
        queue = self._queue()
        for model, figures in queue.models.items():
            pending.add_metric([model], figures.pending_images)
            leased.add_metric([model], figures.leased_shards)
            published.add_metric([model], figures.published_shards)
            failed.add_metric([model], figures.failed_images)
            workers.add_metric([model], figures.workers)
            oldest.add_metric([model], figures.oldest_job_s)
        worker_s = CounterMetricFamily(
            "sdbatch_job_worker_seconds",
            "Seconds of workers that a job has taken",
            labels=["job_id", "submitter"],  # `job` is Prometheus's own
        )
        for job in queue.jobs:
            worker_s.add_metric([job.job_id, job.submitter], job.worker_s)
        return [pending, leased, published, failed, workers, oldest, worker_s]


class _EngineWork(Collector):
    """The engine's own counts: it alone knows when the device has ended something."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[CounterMetricFamily]:
        device = str(self._engine.model.device)
        busy = CounterMetricFamily(
            "sdbatch_accelerator_busy_seconds",
            "Device time of evaluations and decodes",
            labels=["device"],
        )
        busy.add_metric([device], self._engine.busy_s())
        captures = CounterMetricFamily(
            "sdbatch_graph_captures", "CUDA graphs that were captured", labels=["device"]
        )
        captures.add_metric([device], self._engine.captures())
        return [busy, captures]


class _CudaMemory(Collector):
    """Memory of a GPU, as PyTorch counts it. Not run on a GPU by its authors."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "sdbatch_accelerator_memory_bytes", "Memory of the device", labels=["kind"]
        )
        total = torch.cuda.get_device_properties(self._device).total_memory
        family.add_metric(["allocated"], torch.cuda.memory_allocated(self._device))
        family.add_metric(["reserved"], torch.cuda.memory_reserved(self._device))
        family.add_metric(["total"], total)
        return [family]
