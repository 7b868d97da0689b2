"""A worker in this process, with a small model and a job in memory and in a folder, for tests."""

from __future__ import annotations

from pathlib import Path

from jobs.errors import StoreError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.prepare import prepare
from jobs.ledger.memory.ledger import MemoryLedger
from jobs.ledger.types import ClaimAnswer, NewJob, Shard
from jobs.manifest.load import load_manifest
from jobs.settings import Settings
from jobs.storage import LocalStore
from sd_core.engine.engine import Engine
from tests.sd_core.small import ODD, small_model
from worker.monitor.metrics import Metrics
from worker.output.record import ModelInfo
from worker.render.weight_files import AddedFiles
from worker.serve.worker import Worker

SHARD = 2  # images of each
MANIFEST = """\
version: 1
name: small
model: odd
defaults: {{width: 64, height: 64, steps: 3, guidance: 7.5}}
prompts: [{prompts}]
"""


class FailingStore(LocalStore):
    """Does not take images while `broken`; `away`: it says itself that it is."""

    broken = False
    away = False
    error: Exception = StoreError("the store is away")

    def check_writable(self):
        if self.away:
            raise self.error
        super().check_writable()

    def put(self, key, data, **options):
        if self.broken and "/images/" in key:
            raise self.error
        return super().put(key, data, **options)


class Service:
    """A worker and the ledger, jobs and stores that it works with. A context manager."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.ledger = MemoryLedger()
        self.store = FailingStore(folder / "out")
        self.metrics = Metrics("odd")
        self.engine = Engine(small_model(ODD), on_batch=self.metrics.evaluated)
        self.stops = []
        self.added = AddedFiles.of(Settings(loras={}, embeddings={}), folder / "cache")
        self.worker = Worker(
            "w1",
            self.engine,
            ModelInfo("odd", "5a" * 32, "odd.safetensors"),
            self.ledger,
            lambda address: self.store,
            observer=self.metrics,
            added=self.added,
            on_stop=self.stops.append,
            pause_s=(0.0,),
        )

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close(cancel=True)

    def enter(
        self,
        job: str = "job",
        images: int = 4,
        model: str = "odd",
        prompts: str | None = None,
        head: str = "",
    ) -> None:
        """A job with shards of two images, all published. prompts: of the manifest, as YAML; by
        default a prompt with so many seeds. head: further lines.
        """
        if prompts is None:
            prompts = f"{{prompt: a red circle, seeds: {{start: 0, count: {images}}}}}"
        path = self.folder / f"{job}.yaml"
        path.write_text(f"{MANIFEST.format(prompts=prompts)}{head}\n")
        manifest = load_manifest(path)
        prepare(manifest, JobFolder(self.store, JobKeys(job)))
        self.enter_without_folder(job, manifest.total, model)

    def enter_without_folder(self, job: str, images: int = 4, model: str = "odd") -> None:
        ends = range(SHARD, images + 1, SHARD)
        self.ledger.create(NewJob(job, job, "p" * 64, "out", model, ends, evaluations=4 * images))
        self.ledger.publish(job, len(ends))

    def handle(self, job: str = "job", number: int = 0) -> None:
        self.worker.handle(Shard(job, number, SHARD * number, SHARD * (number + 1)))

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


def refused(service: Service) -> dict[str, float]:
    """Deliveries by the ledger's answer, those that came."""
    answers = {a.value: service.value("sdbatch_claims_total", answer=a.value) for a in ClaimAnswer}
    return {answer: count for answer, count in answers.items() if count}
