"""`job.json`: what a job is, beside its plan. With it a ledger is rebuilt from the folder alone.

It is written after plan and inputs, so where it is, they are; and it says whose folder it is, so
nothing that may be another job's is replaced before it was looked at.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from jobs.budget import Budget
from jobs.errors import DamagedError, JobConflictError, NotFoundError
from jobs.folder.layout import JobFolder
from jobs.limits import MAX_IMAGES, MAX_MODELS
from jobs.task import ModelPart, Reproducible

PRIORITIES = range(1, 101)

MAX_JOB_FILE_BYTES = 2**20
"""Digests of a thousand parts, and all the rest."""

MAX_NAME_CHARS = 1000
"""More than a manifest allows for the names of jobs and models."""


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class JobFile:
    """plan: `Manifest.digest`. quality: of jpeg and webp. priority, webhook, reproducible: as
    submitted last; see `sd_core.engine.request.Request` for what exact means. parts: sha256 of each
    part of the plan, as it is stored; None in the job of a version that did not note them.
    models: of a job of several, in the order of its plan; model: all their names then.
    thumbnails: whether large images get some. reuse: whether pictures of the store's earlier jobs
    are taken, as submitted last. dataset: the form of a data set that is written beside the images.
    budget: as submitted last.
    """

    name: Annotated[str, Field(max_length=MAX_NAME_CHARS)]
    model: Annotated[str, Field(max_length=MAX_MODELS * MAX_NAME_CHARS)]
    plan: Sha256
    images: Annotated[int, Field(ge=0, le=MAX_IMAGES)]
    quality: Annotated[int, Field(ge=1, le=100)]
    priority: Annotated[int, Field(ge=PRIORITIES[0], le=PRIORITIES[-1])] = 10
    webhook: str | None = None
    reproducible: Reproducible = "exact"
    parts: Annotated[tuple[Sha256, ...], Field(max_length=MAX_IMAGES)] | None = None
    models: Annotated[tuple[ModelPart, ...], Field(max_length=MAX_MODELS)] = ()
    thumbnails: bool = True
    reuse: bool = True
    dataset: Literal["webdataset"] | None = None
    budget: Budget | None = None


_JOB_FILE = TypeAdapter(JobFile)


def write_job_file(folder: JobFolder, job: JobFile, *, force: bool = False) -> None:
    """Replaces an earlier one of the same plan; with `force`, of any.

    Raises `JobConflictError` if the folder is another job's, also if that came only a moment
    before, and `StoreError`.
    """
    values = asdict(job)
    if not job.models:
        del values["models"]
    for name in ("thumbnails", "reuse", "dataset", "budget"):  # that a version before did not know
        if values[name] == getattr(JobFile, name):
            del values[name]
    data = json.dumps(values, indent=2).encode() + b"\n"

    def put(overwrite: bool) -> bool:
        return folder.put(folder.keys.job, data, overwrite=overwrite)

    if not force:
        if put(False):
            return
        check_folder(folder, job.plan)
    put(True)


def check_folder(folder: JobFolder, plan_digest: str) -> JobFile | None:
    """The job of the folder; None if there is none yet.

    Raises `JobConflictError` if it has another plan, `StoreError`.
    """
    if folder.head(folder.keys.job) is None:
        return None
    found = read_job_file(folder)
    if found.plan != plan_digest:
        raise JobConflictError(
            f"{folder.url} holds another job, {found.name} of model {found.model} (plan "
            f"{found.plan[:12]}…, not {plan_digest[:12]}…); choose another folder or job name"
        )
    return found


def read_job_file(folder: JobFolder) -> JobFile:
    """Raises `NotFoundError` if the folder is no job's or was left half-submitted, `StoreError`."""
    try:
        data = folder.get(folder.keys.job, limit_bytes=MAX_JOB_FILE_BYTES)
    except NotFoundError:
        raise NotFoundError(
            f"{folder.url_of(folder.keys.job)} is missing: there is no such job, or it was never "
            "submitted to the end; submit its manifest again"
        ) from None
    try:
        return _JOB_FILE.validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DamagedError(
            f"{folder.url_of(folder.keys.job)} is damaged: {place}: {first['msg']}; delete it and "
            "submit the job's manifest again"
        ) from None
