"""Tells whether a job has ended and all that it made is there: then a run has nothing to do."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jobs.errors import DamagedError, NotFoundError
from jobs.folder.check import AT_ONCE, THREADS, chunks
from jobs.folder.done import MAX_DONE_BYTES
from jobs.folder.layout import JobFolder
from jobs.folder.records import Record, read_records
from jobs.storage import LocalStore
from jobs.task import Task, spec_digest

Digests = Mapping[str | None, str]
"""By the model that tasks name, the digest of its weights."""


def is_complete(folder: JobFolder, tasks: Iterable[Task], *, images: int, digests: Digests) -> bool:
    """True if `done.json` says that no image failed, the gallery is there, and each task's image by
    the model with its digest is in the store, as large as its record says.

    tasks: all of the job.
    images: how many they are.

    The list of images and the records are read, and some hundred bytes an image kept. A store that
    notes digests is asked for each. Raises `StoreError`.
    """
    done = _done(folder)
    if (
        done.get("images") != images
        or done.get("failed") != 0
        or folder.head(folder.keys.index) is None
    ):
        return False
    return are_there(folder, tasks, images=images, digests=digests) and _are_as_noted(folder)


def are_there(folder: JobFolder, tasks: Iterable[Task], *, images: int, digests: Digests) -> bool:
    """True if the images of these tasks are in the store, as large as their records say.

    images: of the whole job. Raises `StoreError`.
    """
    # Hashes, as a million paths would take more memory. Those of one process never differ.
    paths, sizes = array("q", [0]) * images, array("q", [-1]) * images
    try:
        for record in read_records(folder, needs=("bytes",), images=images):
            index = record["index"]
            paths[index], sizes[index] = hash(record["path"]), record["bytes"]
    except DamagedError:
        return False
    there = {
        hash((folder.keys.path(o.key), o.size_bytes))
        for o in folder.list(folder.keys.images_prefix)
    }
    for task in tasks:
        spec = spec_digest(task, digests[task.model])
        key = folder.keys.image(task.name, spec, task.format)
        path = folder.keys.path(key)
        if paths[task.index] != hash(path) or hash((path, sizes[task.index])) not in there:
            return False
    return True


def _are_as_noted(folder: JobFolder) -> bool:
    """True if the digest that the store notes of each image, as S3 does, is that of its record."""
    if isinstance(folder.store, LocalStore):
        return True  # it notes none

    def is_so(record: Record) -> bool:
        info = folder.head(folder.keys(record["path"]))
        return (
            info is not None and info.metadata.get("sha256", record["sha256"]) == (record["sha256"])
        )

    with ThreadPoolExecutor(THREADS, thread_name_prefix="sdbatch-look") as pool:
        records = read_records(folder, needs=("sha256",))
        return all(all(pool.map(is_so, chunk)) for chunk in chunks(records, AT_ONCE))


def _done(folder: JobFolder) -> dict[str, Any]:
    """The content of `done.json`; empty if it is not there or not to be read."""
    try:
        done = json.loads(folder.get(folder.keys.done, limit_bytes=MAX_DONE_BYTES))
    except (NotFoundError, DamagedError, ValueError, RecursionError):
        return {}
    return done if isinstance(done, dict) else {}
