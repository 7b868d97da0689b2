"""Compares the images of a job with their records, byte by byte, and makes room for new ones."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from jobs.errors import DamagedError, NotFoundError
from jobs.folder.layout import JobFolder
from jobs.folder.records import Record, read_records
from jobs.limits import MAX_RENDERED_BYTES
from jobs.storage import Store, get_verified

log = logging.getLogger(__name__)

T = TypeVar("T")

THREADS = 8  # a download waits most of its time
AT_ONCE = 4 * THREADS  # records between the reading and the comparing, whatever the job's size


def remove_damaged(folder: JobFolder, *, images: int) -> int:
    """Deletes images that are not what their records say, for those that are not there are rendered
    again; how many. Every image is read.

    images: of the job. Raises `StoreError`.
    """

    def is_damaged(record: Record) -> bool:
        key = folder.keys(record["path"])
        return (
            whole_image(folder.store, key, record["sha256"]) is None
            and folder.head(key) is not None
        )

    removed = 0
    with ThreadPoolExecutor(THREADS, thread_name_prefix="sdbatch-check") as pool:
        for chunk in chunks(read_records(folder, needs=("sha256",), images=images), AT_ONCE):
            for record, damaged in zip(chunk, pool.map(is_damaged, chunk), strict=True):
                if damaged:
                    key = folder.keys(record["path"])
                    log.warning("%s is damaged: deleted, to be rendered again", folder.url_of(key))
                    folder.delete(key)
                    removed += 1
    return removed


def whole_image(
    store: Store, key: str, sha256: str, *, limit_bytes: int = MAX_RENDERED_BYTES
) -> bytes | None:
    """The object's bytes; None if they are gone or not what the record says."""
    try:
        return get_verified(store, key, sha256, limit_bytes=limit_bytes)
    except (NotFoundError, DamagedError):
        return None


def chunks(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """The values as they come, so many at a time."""
    iterator = iter(values)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
