"""Renders a whole job on a model in this process."""

from __future__ import annotations

import threading
from contextlib import closing

from jobs.job_file import JobFile
from jobs.plan import read_plan
from jobs.shards import ShardTable
from jobs.storage import JobKeys, Store
from sd_core.engine import Engine
from sd_core.model import LatentDiffusion
from worker.finish import Finisher
from worker.inputs import Inputs
from worker.record import ModelInfo
from worker.runner import JobRecords, Manner, Observer, Outcome, Runner
from worker.saved import SavedImages


def render(
    model: LatentDiffusion,
    info: ModelInfo,
    store: Store,
    keys: JobKeys,
    job: JobFile,
    shards: ShardTable,
    *,
    observer: Observer,
    stop: threading.Event,
    force: bool,
) -> Outcome:
    """Renders what the folder, which `prepare` has filled, does not hold; with `force` everything.

    info: of the model, for records. stop: see `run_job`. Raises like it.
    """
    with closing(JobRecords(store, keys, shards)) as records, Engine(model) as engine:
        finisher = Finisher(store, keys, info, records, quality=job.quality, overwrite=force)
        runner = Runner(
            engine,
            finisher,
            records,
            Inputs(store, keys),
            observer,
            device=model.device.type,
            saved=SavedImages(store, keys),
            manner=Manner(exact=job.reproducible == "exact", save=lambda: True),
            force=force,
        )
        # From the plan in the store: the files that a manifest names may change meanwhile.
        outcome = runner.render(read_plan(store, keys), stop)
        if stop.is_set():
            engine.close(cancel=True)
        return outcome
