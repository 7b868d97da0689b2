"""A job as a worker renders it: its folder, and what it is rendered with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.folder.job_file import JobFile
from jobs.folder.layout import JobFolder
from jobs.reuse.earlier import EarlierPictures
from sd_core.engine.engine import Engine
from worker.output.encoders import Encoder
from worker.output.record import ModelInfo
from worker.render.inputs import Inputs
from worker.render.weight_files import AddedFiles


@dataclass(frozen=True)
class RenderJob:
    """A job, and what renders it.

    folder: the job's, filled by `prepare`.
    described: its `job.json`.
    engine, model: what renders it, and how records name that.
    inputs: its init images and masks. added: finds files of LoRA, embeddings and VAEs.
    encoder: makes the image files.
    input_names: see `worker.output.record.names_of_inputs`.
    force: render what is in the store too, and replace it.
    earlier: pictures that may be taken instead of being rendered; None where none are.
    """

    folder: JobFolder
    described: JobFile
    engine: Engine
    model: ModelInfo
    inputs: Inputs
    added: AddedFiles
    encoder: Encoder = field(default_factory=Encoder)
    input_names: Mapping[str, str] = field(default_factory=dict)
    force: bool = False
    earlier: EarlierPictures | None = None
