"""Plans: what a job will cost, and its tasks written out in the store.

Tasks come and go one at a time here, so memory does not grow with the job.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache

from jobs.errors import DamagedError, NotFoundError
from jobs.folder.layout import JobFolder
from jobs.folder.plan_part import (
    WRITE_ANEW,
    conflict,
    damage_named,
    describe,
    read_part,
    same_part,
    write_part,
)
from jobs.plan.part import PART_SIZE, unpacked
from jobs.plan.task_line import read_task
from jobs.task import Task

PARTS_KEPT = 2
"""Parts of a plan that a reader keeps, compressed; unpacking one again takes milliseconds."""


def write_plan(folder: JobFolder, parts: Iterable[bytes], *, replace: bool = False) -> list[str]:
    """Write the parts of a plan into the job's folder; their sha256, as stored.

    Parts that are there already are left, if they hold the same tasks; otherwise
    `JobConflictError`: images of another job may be there too.
    replace: the folder is known to be this job's, so what differs is damaged, and written again.
    Raises `StoreError`.
    """
    digests = [
        write_part(folder, number, data, replace=replace) for number, data in enumerate(parts)
    ]
    if folder.head(folder.keys.plan_part(len(digests))) is not None:
        raise conflict(folder)
    return digests


def check_plan(folder: JobFolder, parts: Iterable[bytes]) -> None:
    """Raises `JobConflictError` if the folder's plan, as far as it was written, has other tasks
    than these parts, `StoreError`.
    """
    number = -1
    for number, data in enumerate(parts):
        if folder.head(folder.keys.plan_part(number)) is None:
            return
        same_part(folder, number, data)
    if folder.head(folder.keys.plan_part(number + 1)) is not None:
        raise conflict(folder)


def read_plan(folder: JobFolder) -> Iterator[Task]:
    """The tasks of a job in order. Raises `NotFoundError` if the job has no plan, `DamagedError`
    if it is not what was submitted, and `StoreError`.
    """
    described = describe(folder)
    index = 0
    for number in itertools.count():
        key = folder.keys.plan_part(number)
        try:
            data = read_part(folder, number, described)
        except NotFoundError:
            if number == 0:
                raise NotFoundError(f"{folder.url} has no plan, so it is no job's folder") from None
            break
        with damage_named(folder.store, key):
            for line in unpacked(data, PART_SIZE):
                yield read_task(line, index)
                index += 1
    if described is not None and index != described.images:
        raise DamagedError(
            f"{folder.url}/plan has {index:,} of {described.images:,} images; {WRITE_ANEW}"
        )


class PlanReader:
    """Single tasks of a plan, by index; the parts looked at last stay in memory, compressed.

    Thread-safe.
    """

    def __init__(self, folder: JobFolder, *, part_size: int = PART_SIZE) -> None:
        self._folder = folder
        self._part_size = part_size
        self._part = lru_cache(maxsize=PARTS_KEPT)(self._read)

    def tasks(self, indices: Iterable[int]) -> Iterator[Task]:
        """The tasks of these indices, which ascend. Raises `StoreError`, `NotFoundError` without a
        plan.
        """
        for part, group in itertools.groupby(indices, lambda index: index // self._part_size):
            yield from self._of_part(part, group)

    def _of_part(self, part: int, indices: Iterable[int]) -> Iterator[Task]:
        data, place = self._part(part), part * self._part_size
        with damage_named(self._folder.store, self._folder.keys.plan_part(part)):
            lines = unpacked(data, self._part_size)
            for index in indices:
                line = next(itertools.islice(lines, index - place, None), None)
                if line is None:
                    url = self._folder.url
                    raise NotFoundError(f"{url} has no image {index}")
                yield read_task(line, index)
                place = index + 1

    def _read(self, part: int) -> bytes:
        described = describe(self._folder)
        data = read_part(self._folder, part, described)
        if described is None or described.parts is None:
            with damage_named(self._folder.store, self._folder.keys.plan_part(part)):
                deque(unpacked(data, self._part_size), maxlen=0)  # by gzip's own checksum
        return data
