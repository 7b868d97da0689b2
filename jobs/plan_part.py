"""One part of a plan in the store: the tasks of 10,000 images, a line each, compressed.

What is read is bounded, and compared with its digest where `job.json` has one. The same tasks give
the same bytes.
"""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256

from jobs.errors import DamagedError, InputError, JobConflictError, NotFoundError
from jobs.gunzip import gunzip_lines
from jobs.job_file import JobFile, read_job_file
from jobs.storage import JobKeys, Store, get_verified
from jobs.storage.keys import content_type
from jobs.task import Task
from jobs.task_line import MAX_LINE_BYTES

log = logging.getLogger(__name__)

PART_SIZE = 10_000
"""Tasks in one part of a plan: a few hundred kilobytes compressed."""

MAX_PART_BYTES = 64 * 2**20
"""One part of a plan, compressed."""

MAX_PART_TEXT_BYTES = 512 * 2**20
"""The lines of one part. Those of ordinary prompts are a few megabytes."""

WRITE_ANEW = "submit or run the job's manifest again, which writes it anew"

_GZIP_LEVEL = 6

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def dump(tasks: Iterable[Task]) -> bytes:
    """The lines of a part."""
    return "".join(f"{_encode(task.to_json())}\n" for task in tasks).encode("ascii")


def write_part(store: Store, keys: JobKeys, number: int, lines: bytes, *, replace: bool) -> str:
    """Writes a part that is not there; its sha256, as stored. replace: see `jobs.plan.write_plan`,
    whose errors it raises.
    """
    key = keys.plan_part(number)
    data = gzip.compress(lines, _GZIP_LEVEL, mtime=0)
    if len(lines) > MAX_PART_TEXT_BYTES or len(data) > MAX_PART_BYTES:
        raise InputError(
            f"the prompts of {PART_SIZE:,} images in a row, from image {number * PART_SIZE:,} on, "
            f"are too long together: {len(lines):,} bytes, {len(data):,} compressed; at most "
            f"{MAX_PART_TEXT_BYTES:,} and {MAX_PART_BYTES:,} are allowed"
        )
    if store.put(key, data, content_type=content_type(key)):
        return sha256(data).hexdigest()
    try:
        return sha256(same_part(store, keys, number, lines)).hexdigest()
    except (JobConflictError, DamagedError):
        if not replace:
            raise
    log.warning("%s is damaged; it is written anew", store.url(key))
    store.put(key, data, overwrite=True, content_type=content_type(key))
    return sha256(data).hexdigest()


def same_part(store: Store, keys: JobKeys, number: int, lines: bytes) -> bytes:
    """The part as it is stored, compressed, which must hold these lines. What is inside counts:
    another version of zlib may have compressed it otherwise.

    Raises `JobConflictError` if it has others, `DamagedError` and `StoreError`.
    """
    key = keys.plan_part(number)
    data = store.get(key, limit_bytes=MAX_PART_BYTES)
    place = 0
    try:
        if not data:
            raise ValueError("it is empty")
        for line in unpacked(data, PART_SIZE):
            if not lines.startswith(line, place):
                raise conflict(store, keys)
            place += len(line)
    except ValueError as error:
        raise _damaged(store, key, f"{error}; delete it, and run or submit again") from error
    if place != len(lines):
        raise conflict(store, keys)
    return data


def describe(store: Store, keys: JobKeys) -> JobFile | None:
    """What the job is; None before its plan is complete."""
    try:
        return read_job_file(store, keys)
    except NotFoundError:
        return None


def read_part(store: Store, keys: JobKeys, number: int, described: JobFile | None) -> bytes:
    """The part, compressed, compared with its digest if there is one; it is not empty.

    Raises `DamagedError`, `NotFoundError` and `StoreError`.
    """
    key = keys.plan_part(number)
    digests = None if described is None else described.parts
    if digests is None:
        data = store.get(key, limit_bytes=MAX_PART_BYTES)
    elif number < len(digests):
        try:
            data = get_verified(store, key, digests[number], limit_bytes=MAX_PART_BYTES)
        except DamagedError as error:
            raise DamagedError(f"{error}; {WRITE_ANEW}") from None
    else:
        raise NotFoundError(f"{store.url(key)} is no part of the plan")
    if not data:
        raise _damaged(store, key, f"it is empty; {WRITE_ANEW}")
    return data


def unpacked(data: bytes, most_lines: int) -> Iterator[bytes]:
    """The lines of a part. Raises `ValueError`."""
    return gunzip_lines(
        data, most_lines=most_lines, line_bytes=MAX_LINE_BYTES, total_bytes=MAX_PART_TEXT_BYTES
    )


@contextmanager
def damage_named(store: Store, key: str) -> Iterator[None]:
    """Whatever is wrong with the lines of a part says which part it is."""
    try:
        yield
    except ValueError as error:
        raise _damaged(store, key, str(error)) from error


def _damaged(store: Store, key: str, flaw: str) -> DamagedError:
    return DamagedError(f"{store.url(key)} is damaged: {flaw}")


def conflict(store: Store, keys: JobKeys) -> JobConflictError:
    """For a folder with another plan."""
    folder = store.url(keys.prefix.rstrip("/"))
    return JobConflictError(f"{folder} holds another job; choose another folder or job name")
