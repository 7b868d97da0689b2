"""Copies what a job made from its store into a folder: checked, resumable, only what is missing."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.client.stars import check_stars
from jobs.dataset import Form, write_dataset
from jobs.errors import DamagedError, NotFoundError, StoreError
from jobs.folder.check import AT_ONCE, THREADS, chunks, whole_image
from jobs.folder.job_file import read_job_file
from jobs.folder.layout import JobFolder
from jobs.folder.records import MAX_FAILURES_BYTES, Record, read_failures, read_records
from jobs.limits import MAX_INPUT_BYTES, MAX_RENDERED_BYTES
from jobs.report import write_unfinished_report
from jobs.storage import LocalStore, Store

log = logging.getLogger(__name__)

_INPUT = re.compile("[0-9a-f]{64}")  # how the names of inputs begin

_BESIDES = (
    *("manifest.yaml", "manifest.resolved.yaml", "inputs.json"),
    *("records/", "records.parquet", "failures.jsonl"),
    *("gallery/", "grid-", "index.html", "done.json"),
)
"""Files that are collected besides images and inputs, in this order: `done.json` last."""


@dataclass
class Collected:
    """Result of a collection.

    damaged: images that are not as their record says, inputs that are not as their name says, and
        missing files.
    """

    folder: Path
    copied: int = 0
    present: int = 0
    bytes_copied: int = 0
    damaged: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "copied": self.copied,
            "present": self.present,
            "bytes": self.bytes_copied,
            "damaged": self.damaged,
        }


def collect(
    folder: JobFolder,
    destination: Path,
    *,
    containing: str | None = None,
    stars: Collection[str] | None = None,
    tick: Callable[[int], None] = lambda done: None,
) -> Collected:
    """Copies a job's images, each checked against the sha256 of its record, and then the rest.

    The folder gets the layout of the store: `destination/<job>/images/…`. Images that are there
    already, and right, are not copied again. A job that is not finished gets its gallery here.
    containing: only images whose prompt has this text, whatever its case, and nothing else. stars:
    only images of these paths, and nothing else. tick: called with the number of images looked at.
    Raises `StoreError`, `NotFoundError` if the job has no records, and `InputError` if one of
    `stars` is none of its images: then nothing is copied.
    """
    is_whole = containing is None and stars is None
    if stars is not None:
        check_stars(folder, stars)
    collected = Collected(destination / folder.keys.job_id)
    target = LocalStore(destination)
    target.check_writable()
    lock = threading.Lock()
    looked_at = itertools.count(1)

    def take(record: Record) -> None:
        size = _copy(folder.store, target, folder.keys(record["path"]), record["sha256"])
        if is_whole and size is not None and "thumbnail" in record:
            _copy_thumbnail(folder.store, target, folder.keys(record["thumbnail"]))
        with lock:
            if size is None:
                collected.damaged.append(record["path"])
                return
            collected.copied += size > 0
            collected.present += size == 0
            collected.bytes_copied += size
            tick(next(looked_at))

    records = _wanted(folder, containing, stars)
    found = False
    with ThreadPoolExecutor(THREADS, thread_name_prefix="sdbatch-collect") as pool:
        for chunk in chunks(records, AT_ONCE):
            found = True
            list(pool.map(take, chunk))
    if not found and is_whole:
        raise NotFoundError(f"{folder.url} has no finished images")
    if is_whole:
        for info in folder.list(folder.keys.inputs_prefix):
            digest = _INPUT.match(info.key, len(folder.keys.inputs_prefix))
            if digest is None:
                continue
            key, limit = info.key, MAX_INPUT_BYTES
            if _copy(folder.store, target, key, digest[0], limit_bytes=limit) is None:
                collected.damaged.append(folder.keys.path(info.key))
        last = ""
        for last in _besides(folder):
            data = folder.get(last, limit_bytes=MAX_FAILURES_BYTES)
            target.put(last, data, overwrite=True)
        if (
            last != folder.keys.done
        ):  # not finished, so what gallery there may be is of another moment
            _write_gallery(folder, target)
    return collected


def collect_as(
    form: Form,
    folder: JobFolder,
    destination: Path,
    *,
    containing: str | None = None,
    stars: Collection[str] | None = None,
    tick: Callable[[int], None] = lambda done: None,
) -> Collected:
    """Copies a job's images into a data set in `destination/<job>`, each checked against the sha256
    of its record; again for only what is missing.

    containing, stars, tick: see `collect`. Raises like it, and `InputError` without pyarrow where
    the form needs it.
    """
    if stars is not None:
        check_stars(folder, stars)
    target = LocalStore(destination)
    target.check_writable()

    def records() -> Iterator[Record]:
        return _wanted(folder, containing, stars)

    if containing is None and stars is None and next(records(), None) is None:
        raise NotFoundError(f"{folder.url} has no finished images")
    written = write_dataset(form, folder, records, target, folder.keys.prefix, tick=tick)
    return Collected(
        destination / folder.keys.job_id,
        written.copied,
        written.present,
        written.bytes_copied,
        written.damaged,
    )


def _wanted(
    folder: JobFolder, containing: str | None, stars: Collection[str] | None
) -> Iterator[Record]:
    """Records of the images that are collected."""
    wanted = "" if containing is None else containing.casefold()
    for record in read_records(folder, needs=("sha256", "prompt")):
        is_starred = stars is None or record["path"] in stars
        if is_starred and wanted in record["prompt"].casefold():
            yield record


def _write_gallery(folder: JobFolder, target: LocalStore) -> None:
    """Write a gallery of the images collected so far; they are there whatever is wrong with it."""
    try:
        planned = None if folder.head(folder.keys.job) is None else read_job_file(folder).images
        failures = read_failures(JobFolder(target, folder.keys))
        write_unfinished_report(JobFolder(target, folder.keys), failures, planned=planned)
    except DamagedError as error:
        log.warning("there is no gallery: %s", error)


def _copy(
    store: Store,
    target: LocalStore,
    key: str,
    sha256: str,
    *,
    limit_bytes: int = MAX_RENDERED_BYTES,
) -> int | None:
    """The bytes that were copied, 0 of what is there already; None if the store has it no more, or
    not as it was.
    """
    if whole_image(target, key, sha256, limit_bytes=limit_bytes) is not None:
        return 0
    data = whole_image(store, key, sha256, limit_bytes=limit_bytes)
    if data is None:
        return None
    target.put(key, data, overwrite=True)
    return len(data)


def _copy_thumbnail(store: Store, target: LocalStore, key: str) -> None:
    """Copies a small picture for the gallery. No record knows its digest, and one that is gone is
    not missed: the gallery shows the image.
    """
    if target.head(key) is not None:
        return
    with contextlib.suppress(NotFoundError, DamagedError):
        data = store.get(key, limit_bytes=MAX_RENDERED_BYTES)
        target.put(key, data, overwrite=True)


def _besides(folder: JobFolder) -> Iterator[str]:
    for path in _BESIDES:
        for info in folder.list(folder.keys.prefix + path):
            yield info.key


def refuse_same(store: Store, destination: Path) -> None:
    """Raises `StoreError` if the job would be copied onto itself."""
    if isinstance(store, LocalStore) and store.root == destination.absolute():
        raise StoreError(f"{destination} is the job's own store; give another folder")
