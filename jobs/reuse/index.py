"""The index of pictures: for each job of a store one small object that says which it has made.

    .pictures/<job-id>    a line of JSON, {"version": 1, "models": {name: digest}, "speeds": […]},
                          then 12 bytes a picture: 8 of its spec digest, and the number of its
                          shard, big-endian, in the order of these bytes

So one listing tells what is new, and a new job of any size is looked up without a request for each
of its images. It is made of records and may be deleted: `sdbatch index` makes it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.errors import DamagedError
from jobs.folder.layout import SPEC_DIGITS, JobFolder
from jobs.folder.records import Record, read_lines
from jobs.limits import MAX_IMAGES, MAX_MODELS
from jobs.plan.observed import MOST_KINDS, ObservedSpeed, SpeedFold
from jobs.storage import Store
from jobs.storage.base import check_key

INDEX_FOLDER = ".pictures"
INDEX_PREFIX = f"{INDEX_FOLDER}/"

MAX_HEADER_BYTES = 2**20

ENTRY = np.dtype([("spec", ">u8"), ("shard", ">u4")])

MAX_INDEX_BYTES = MAX_HEADER_BYTES + ENTRY.itemsize * MAX_IMAGES

Entries = NDArray[np.void]
"""A structured array of `ENTRY`, sorted."""


class _Header(BaseModel):
    model_config = ConfigDict(strict=True)

    version: Literal[1]
    models: Annotated[dict[str, str], Field(max_length=MAX_MODELS)]
    speeds: Annotated[list[ObservedSpeed], Field(max_length=MOST_KINDS)] = []


@dataclass(frozen=True)
class JobIndex:
    """Pictures of one job. models: name -> digest of its weights, 64 hex digits. speeds: how fast
    they were made.
    """

    models: Mapping[str, str]
    speeds: Sequence[ObservedSpeed]
    entries: Entries


def index_key(job_id: str) -> str:
    """Where the index of a job is in its store."""
    return check_key(f"{INDEX_PREFIX}{job_id}")


def spec_number(spec: str) -> int:
    """The first 8 bytes of a spec digest. spec: at least 16 hex digits."""
    return int(spec[:SPEC_DIGITS], 16)


def write_index(folder: JobFolder) -> int:
    """Index a job's pictures, as its records have them; how many. Replaces an earlier index.

    Raises `StoreError`.
    """
    models: dict[str, str] = {}
    speeds = SpeedFold()
    entries = np.fromiter(_entries(folder, models, speeds), ENTRY)
    if len(entries) == 0:
        folder.delete(index_key(folder.keys.job_id))
        return 0
    header = _Header(version=1, models=models, speeds=speeds.speeds()).model_dump_json()
    data = header.encode() + b"\n" + np.sort(entries, order=("spec", "shard")).tobytes()
    folder.put(index_key(folder.keys.job_id), data, overwrite=True)
    return len(entries)


def _entries(
    folder: JobFolder, models: dict[str, str], speeds: SpeedFold
) -> Iterator[tuple[int, int]]:
    for shard, record in _records(folder):
        speeds.add(record)
        models[record["model"]["name"]] = record["model"]["digest"]
        yield spec_number(record["spec"]), shard


def _records(folder: JobFolder) -> Iterator[tuple[int, Record]]:
    """Records with the number of the shard that they are written in."""
    for info in folder.list(folder.keys.records_prefix):
        number = info.key.removeprefix(folder.keys.records_prefix).removesuffix(".jsonl")
        if not number.isdecimal() or folder.keys.records(int(number)) != info.key:
            continue
        for record in read_lines(folder.store, info.key, skip_damaged=True):
            if "spec" in record and "model" in record:
                yield int(number), record


def read_index(store: Store, key: str) -> JobIndex:
    """Raises `DamagedError` for what is none, `NotFoundError` and `StoreError`."""
    data = store.get(key, limit_bytes=MAX_INDEX_BYTES)
    end = data.find(b"\n", 0, MAX_HEADER_BYTES + 1)
    body = memoryview(data)[end + 1 :]
    try:
        header = _Header.model_validate_json(data[: max(0, end)])
    except ValidationError:
        raise _damaged(store, key, "its first line") from None
    if len(body) % ENTRY.itemsize:
        raise _damaged(store, key, "its length")
    entries = np.frombuffer(body, ENTRY)
    if (entries["spec"][1:] < entries["spec"][:-1]).any():
        raise _damaged(store, key, "its order")
    return JobIndex(header.models, header.speeds, entries)


def _damaged(store: Store, key: str, what: str) -> DamagedError:
    return DamagedError(f"{store.url(key)} is no index of pictures: {what} is wrong; delete it")
