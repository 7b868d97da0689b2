"""Renders images of a job once more: a sample to compare with, or what is to be mended."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

from jobs.errors import SdbatchError
from jobs.folder.input_names import read_input_names
from jobs.folder.job_file import JobFile
from jobs.folder.layout import JobFolder
from jobs.folder.plan import PlanReader, read_plan
from jobs.folder.record_writer import JobRecords
from jobs.folder.records import Record
from jobs.limits import MAX_RENDERED_BYTES
from jobs.pictures.embedded import read_record
from jobs.plan.shards import ShardTable
from jobs.task import Failure
from sd_core.engine.engine import Engine
from sd_core.model.diffusion import LatentDiffusion
from worker.observer import Observer
from worker.output.encoders import encoder
from worker.output.record import ModelInfo
from worker.output.stored import ImageRecords
from worker.render.inputs import Inputs
from worker.render.job import RenderJob
from worker.render.runner import Outcome, RenderOptions, Runner
from worker.render.weight_files import AddedFiles
from worker.verify.check import Finding, Kind
from worker.verify.compare import LEAST_PSNR_DB, psnr_db, same_kind
from worker.verify.scratch import ScratchStore


@dataclass
class Sampled:
    """Result of rendering a sample again. same: images with the same pixels. close: those that only
    another kind of device, number format or library may draw otherwise. least_psnr_db: of these.
    """

    images: int = 0
    same: int = 0
    close: int = 0
    least_psnr_db: float | None = None
    findings: list[Finding] = field(default_factory=list)


def choose(images: int, share: float, plan: str) -> list[int]:
    """Images of a sample, in order: at least one, and the same ones each time.

    share: of all, in (0, 1]. plan: the plan's digest.
    """
    count = max(1, round(images * share))
    return sorted(random.Random(plan).sample(range(images), count))


@dataclass(frozen=True)
class Again:
    """Renders images of one model of a job. info: of the model, for records. stop: set to end
    between two steps.
    """

    folder: JobFolder
    described: JobFile
    model: LatentDiffusion
    info: ModelInfo
    added: AddedFiles
    stop: threading.Event

    def sample(self, indices: Sequence[int], observer: Observer, sampled: Sampled) -> None:
        """Adds to `sampled` how these images compare with those in the store, which stay as they
        are. Raises `StoreError`.
        """
        store = ScratchStore(self.folder.store)
        comparing = _Comparing(self.folder, store, sampled)
        scratch = JobFolder(store, self.folder.keys)
        outcome = self._render(scratch, comparing, indices, observer, force=True)
        sampled.images += len(indices)
        sampled.findings += [_not_made(failure) for failure in outcome.failures]

    def mend(self, indices: Sequence[int], observer: Observer, *, force: bool) -> Outcome:
        """Renders what of these images the folder does not hold whole, and writes their records.
        force: all of them. Raises `StoreError`.
        """
        shards = ShardTable.of(read_plan(self.folder), self.described.images)
        with closing(JobRecords(self.folder, shards)) as records:
            return self._render(self.folder, records, indices, observer, force=force)

    def _render(
        self,
        folder: JobFolder,
        records: ImageRecords,
        indices: Sequence[int],
        observer: Observer,
        *,
        force: bool,
    ) -> Outcome:
        with encoder(self.model.device.type) as files, Engine(self.model) as engine:
            job = RenderJob(
                *(folder, self.described, engine, self.info, Inputs(folder), self.added, files),
                input_names=read_input_names(folder),
                force=force,
            )
            tasks = PlanReader(folder).tasks(indices)
            outcome = Runner(job, records, observer, RenderOptions()).render(tasks, self.stop)
            if self.stop.is_set():
                engine.close(cancel=True)
        return outcome


def _not_made(failure: Failure) -> Finding:
    why = f"rendering it again failed: {failure.reason}"
    return Finding(Kind.DIFFERENT, f"images/{failure.name}", why, failure.index)


class _Comparing:
    """Takes the records of images that were rendered again, and compares them."""

    def __init__(self, folder: JobFolder, store: ScratchStore, sampled: Sampled) -> None:
        self._folder = folder
        self._store = store
        self._sampled = sampled
        self._lock = threading.Lock()

    def line(self, index: int) -> Record | None:
        """None: nothing is known of what is rendered."""
        return None

    def add(self, record: Record) -> None:
        """Raises `StoreError`."""
        key = self._folder.keys(record["path"])
        again = self._store.take(key)
        if "thumbnail" in record:
            self._store.take(self._folder.keys(record["thumbnail"]))
        try:
            before = self._folder.get(key, limit_bytes=MAX_RENDERED_BYTES)
            made_as = read_record(before)
        except (SdbatchError, ValueError) as error:
            self._differs(record, str(error))
            return
        near_db = psnr_db(before, again)
        if near_db == float("inf"):
            with self._lock:
                self._sampled.same += 1
        elif same_kind(made_as, record):
            self._differs(record, f"this device draws other pixels ({near_db:.1f} dB)")
        elif near_db < LEAST_PSNR_DB:
            self._differs(record, f"the model draws another picture ({near_db:.1f} dB)")
        else:
            with self._lock:
                least = self._sampled.least_psnr_db
                self._sampled.close += 1
                self._sampled.least_psnr_db = near_db if least is None else min(least, near_db)

    def _differs(self, record: Record, why: str) -> None:
        finding = Finding(Kind.DIFFERENT, record["path"], why, record["index"])
        with self._lock:
            self._sampled.findings.append(finding)
