"""One part of a plan in the store: the tasks of 10,000 images, a line each, compressed.

What is read is bounded, and compared with its digest where `job.json` has one. The same tasks give
the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

from jobs.errors import DamagedError, JobConflictError, NotFoundError
from jobs.folder.job_file import JobFile, read_job_file
from jobs.folder.layout import JobFolder
from jobs.plan.part import MAX_PART_BYTES, PART_SIZE, unpacked
from jobs.storage import Store, get_verified

log = logging.getLogger(__name__)


WRITE_ANEW = "submit or run the job's manifest again, which writes it anew"


def write_part(folder: JobFolder, number: int, data: bytes, *, replace: bool) -> str:
    """Write a part that is not there; its sha256, as stored.

    data: the part, compressed. replace: see `jobs.folder.plan.write_plan`, whose errors it raises.
    """
    key = folder.keys.plan_part(number)
    if folder.put(key, data):
        return sha256(data).hexdigest()
    try:
        return sha256(same_part(folder, number, data)).hexdigest()
    except (JobConflictError, DamagedError):
        if not replace:
            raise
    log.warning("%s is damaged; it is written anew", folder.url_of(key))
    folder.put(key, data, overwrite=True)
    return sha256(data).hexdigest()


def same_part(folder: JobFolder, number: int, data: bytes) -> bytes:
    """The part as it is stored, compressed, which must hold the lines of `data`. What is inside
    counts: another version of zlib may have compressed it otherwise.

    Raises `JobConflictError` if it has others, `DamagedError` and `StoreError`.
    """
    key = folder.keys.plan_part(number)
    stored = folder.get(key, limit_bytes=MAX_PART_BYTES)
    if stored == data:
        return stored
    wanted = unpacked(data, PART_SIZE)
    try:
        if not stored:
            raise ValueError("it is empty")
        for line in unpacked(stored, PART_SIZE):
            if line != next(wanted, None):
                raise conflict(folder)
    except ValueError as error:
        raise _damaged(folder.store, key, f"{error}; delete it, and run or submit again") from error
    if next(wanted, None) is not None:
        raise conflict(folder)
    return stored


def describe(folder: JobFolder) -> JobFile | None:
    """Description of the job; None before its plan is complete."""
    try:
        return read_job_file(folder)
    except NotFoundError:
        return None


def read_part(folder: JobFolder, number: int, described: JobFile | None) -> bytes:
    """The part, compressed, compared with its digest if there is one; it is not empty.

    Raises `DamagedError`, `NotFoundError` and `StoreError`.
    """
    key = folder.keys.plan_part(number)
    digests = None if described is None else described.parts
    if digests is None:
        data = folder.get(key, limit_bytes=MAX_PART_BYTES)
    elif number < len(digests):
        try:
            data = get_verified(folder.store, key, digests[number], limit_bytes=MAX_PART_BYTES)
        except DamagedError as error:
            raise DamagedError(f"{error}; {WRITE_ANEW}") from None
    else:
        raise NotFoundError(f"{folder.url_of(key)} is no part of the plan")
    if not data:
        raise _damaged(folder.store, key, f"it is empty; {WRITE_ANEW}")
    return data


@contextmanager
def damage_named(store: Store, key: str) -> Iterator[None]:
    """Whatever is wrong with the lines of a part says which part it is."""
    try:
        yield
    except ValueError as error:
        raise _damaged(store, key, str(error)) from error


def _damaged(store: Store, key: str, flaw: str) -> DamagedError:
    return DamagedError(f"{store.url(key)} is damaged: {flaw}")


def conflict(folder: JobFolder) -> JobConflictError:
    """For a folder with another plan."""
    place = folder.url
    return JobConflictError(f"{place} holds another job; choose another folder or job name")
