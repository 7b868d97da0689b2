"""A whole job in this process, with no service: what `sdbatch run` does.

The order of writing is that of the service too: manifest, inputs and plan first, then each image
before its record, `done.json` last. So a run that was stopped, however, goes on where it was.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import InputError, Interrupted, JobConflictError, ModelError
from jobs.job_file import JobFile, Reproducible
from jobs.manifest import Manifest
from jobs.pin import pin_model
from jobs.plan import read_plan
from jobs.prepare import prepare
from jobs.records import write_failures
from jobs.settings import Settings
from jobs.sources import S3
from jobs.storage import JobKeys, Store
from sd_core.engine import Engine
from sd_core.execution import ExecutionError
from sd_core.loading import load_model
from sd_core.model import LatentDiffusion
from sd_core.weights.errors import CheckpointError
from worker.finish import Finisher
from worker.inputs import Inputs
from worker.record import ModelInfo
from worker.runner import JobRecords, Manner, Observer, Runner
from worker.saved import SavedImages
from worker.tail import write_tail


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load, and how. name: what records call it. cache: a folder for what comes from
    a bucket, and for what is made of it once: laid-out weights, compiled programs.
    """

    name: str
    source: str
    digest: str | None = None
    config: Path | None = None
    vae: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    execution: str = "auto"
    cache: Path = Settings.cache


@dataclass(frozen=True)
class RunSummary:
    """What a run came to. images: of the whole job; url: of its folder, for people."""

    job: str
    url: str
    images: int
    rendered: int
    reused: int
    failed: int
    load_s: float
    render_s: float

    def to_json(self) -> dict[str, Any]:
        return {
            "job": self.job,
            "folder": self.url,
            "images": self.images,
            "rendered": self.rendered,
            "reused": self.reused,
            "failed": self.failed,
            "load_s": round(self.load_s, 3),
            "render_s": round(self.render_s, 3),
        }


def load(choice: ModelChoice) -> LatentDiffusion:
    """The model, checked against its digest where one is named, and made ready for its device.

    Raises `ModelError`, and `StoreError` if it is in a bucket whose server is away.
    """
    source: str | Path = choice.source
    if choice.source.startswith(S3):
        from worker.fetch import fetch  # boto3 takes a while to import

        source = fetch(choice.source, choice.cache, pinned=choice.digest is not None)
    try:
        model = load_model(
            source,
            device=choice.device,
            dtype=choice.dtype,
            config=choice.config,
            vae=choice.vae,
            execution=choice.execution,
            cache=choice.cache.expanduser(),
        )
    except CheckpointError as error:
        where = "" if source == choice.source else f"{choice.source}: "
        raise ModelError(f"{where}{error}") from error
    except (ExecutionError, OSError) as error:  # no such kernels here; a cache of another's
        raise InputError(f"SDBATCH_EXECUTION: {error}") from error
    except ValueError as error:  # a device or dtype that this machine has not
        raise InputError(str(error)) from error
    if choice.digest is not None and model.digest != choice.digest:
        raise ModelError(
            f"model {choice.name}: {choice.source} has digest {model.digest}, "
            f"the model list says {choice.digest}"
        )
    return model


def run_job(
    manifest: Manifest,
    choice: ModelChoice,
    store: Store,
    *,
    job: str | None = None,
    force: bool = False,
    reproducible: Reproducible = JobFile.reproducible,
    observe: Callable[[], AbstractContextManager[Observer]],
    status: Callable[[str], AbstractContextManager[object]],
    stop: threading.Event,
) -> RunSummary:
    """Renders what the job's folder does not hold yet, and writes its report.

    job: names the folder; by default the name derived from the manifest's content. reproducible:
    for a manifest that says nothing of it.
    observe: opens the progress of rendering. status: shows what else takes its time.
    stop: set to end between two steps; raises `Interrupted` once all that is finished is kept.
    Raises the errors of `jobs.errors`; failed images are counted in the summary.
    """
    keys = JobKeys(job if job is not None else manifest.job_id())
    store.check_writable()
    started = time.monotonic()
    with status(f"loading {choice.name}"):
        model = load(choice)
    load_s = time.monotonic() - started
    with status("writing the plan"):
        described, shards = prepare(manifest, store, keys, reproducible=reproducible, force=force)
    revision = None if model.provenance is None else model.provenance.revision
    info = ModelInfo(choice.name, model.digest, choice.source, revision)
    _pin(store, keys, info, force=force)

    started = time.monotonic()
    with closing(JobRecords(store, keys, shards)) as records, observe() as observer:
        finisher = Finisher(
            store, keys, info, records, quality=manifest.output.quality, overwrite=force
        )
        with Engine(model) as engine:
            runner = Runner(
                engine,
                finisher,
                records,
                Inputs(store, keys),
                observer,
                device=model.device.type,
                saved=SavedImages(store, keys),
                manner=Manner(exact=described.reproducible == "exact", save=lambda: True),
                force=force,
            )
            # From the plan in the store: the files that a manifest names may change meanwhile.
            outcome = runner.render(read_plan(store, keys), stop)
            if stop.is_set():
                engine.close(cancel=True)
    render_s = time.monotonic() - started
    write_failures(store, keys, outcome.failures)
    if outcome.settled < manifest.total:
        raise Interrupted(
            f"stopped after {outcome.rendered + outcome.reused} of {manifest.total} images, "
            f"kept in {store.url(keys.prefix.rstrip('/'))}; the same command continues"
        )
    with status("writing the gallery"):
        write_tail(store, keys, outcome.failures, info.to_json())
    return RunSummary(
        job=keys.job_id,
        url=store.url(keys.prefix.rstrip("/")),
        images=manifest.total,
        rendered=outcome.rendered,
        reused=outcome.reused,
        failed=len(outcome.failures),
        load_s=load_s,
        render_s=render_s,
    )


def _pin(store: Store, keys: JobKeys, model: ModelInfo, *, force: bool) -> None:
    try:
        pin_model(store, keys, model.name, model.digest, overwrite=force)
    except JobConflictError as error:
        hint = "name this run with --job, or render all anew with --force"
        raise JobConflictError(f"{error}; {hint}") from None
