"""Render a whole job on a model in this process."""

from __future__ import annotations

import itertools
import threading
from contextlib import closing

from jobs.folder.input_names import read_input_names
from jobs.folder.job_file import JobFile
from jobs.folder.layout import JobFolder
from jobs.folder.plan import read_plan
from jobs.folder.record_writer import JobRecords
from jobs.plan.shards import ShardTable
from jobs.reuse.earlier import EarlierPictures
from sd_core.engine.engine import Engine
from sd_core.model.diffusion import LatentDiffusion
from worker.observer import Observer
from worker.output.encoders import encoder
from worker.output.record import ModelInfo
from worker.render.inputs import Inputs
from worker.render.job import RenderJob
from worker.render.runner import Outcome, RenderOptions, Runner
from worker.render.weight_files import AddedFiles


def render(
    model: LatentDiffusion,
    info: ModelInfo,
    folder: JobFolder,
    described: JobFile,
    shards: ShardTable,
    images: range,
    *,
    added: AddedFiles,
    observer: Observer,
    stop: threading.Event,
    force: bool,
    earlier: EarlierPictures | None = None,
) -> Outcome:
    """Render what the folder, which `prepare` has filled, does not hold of these images; with
    `force` all of them.

    info: of the model, for records. stop: see `run_job`. earlier: pictures that may be taken.
    Raises like `run_job`.
    """
    with (
        closing(JobRecords(folder, shards)) as records,
        encoder(model.device.type) as files,
        Engine(model) as engine,
    ):
        job = RenderJob(
            *(folder, described, engine, info, Inputs(folder), added, files),
            input_names=read_input_names(folder),
            force=force,
            earlier=earlier,
        )
        runner = Runner(job, records, observer, RenderOptions(save=lambda: True))
        # From the plan in the store: the files that a manifest names may change meanwhile.
        tasks = itertools.islice(read_plan(folder), images.start, images.stop)
        outcome = runner.render(tasks, stop)
        if stop.is_set():
            engine.close(cancel=True)
        return outcome
