"""`job.json`: what a job is, beside its plan. With it a ledger is rebuilt from the folder alone.

It is written after plan, inputs and manifest, so where it is, they are.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from jobs.errors import NotFoundError, StoreError
from jobs.storage import JobKeys, Store
from jobs.storage.keys import content_type

PRIORITIES = range(1, 101)


@dataclass(frozen=True)
class JobFile:
    """plan: `Manifest.digest`. quality: of jpeg and webp. priority, webhook: as submitted last."""

    name: str
    model: str
    plan: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    images: Annotated[int, Field(ge=0)]
    quality: Annotated[int, Field(ge=1, le=100)]
    priority: Annotated[int, Field(ge=PRIORITIES[0], le=PRIORITIES[-1])] = 10
    webhook: str | None = None


_JOB_FILE = TypeAdapter(JobFile)


def write_job_file(store: Store, keys: JobKeys, job: JobFile) -> None:
    """Replaces an earlier one. Raises `StoreError`."""
    data = json.dumps(asdict(job), indent=2).encode() + b"\n"
    store.put(keys.job, data, overwrite=True, content_type=content_type(keys.job))


def read_job_file(store: Store, keys: JobKeys) -> JobFile:
    """Raises `NotFoundError` if the folder is no job's or was left half-submitted, `StoreError`."""
    try:
        data = store.get(keys.job)
    except NotFoundError:
        raise NotFoundError(
            f"{store.url(keys.job)} is missing: there is no such job, or it was never submitted "
            "to the end; submit its manifest again"
        ) from None
    try:
        return _JOB_FILE.validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StoreError(f"{store.url(keys.job)} is damaged: {place}: {first['msg']}") from None
