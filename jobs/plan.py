"""Plans: what a job will cost, and its tasks written out in the store.

Tasks come and go one at a time here, so memory does not grow with the job.
"""

from __future__ import annotations

import gzip
import itertools
import json
import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Any

from jobs.errors import DamagedError, InputError, JobConflictError, NotFoundError
from jobs.gunzip import gunzip_lines
from jobs.job_file import JobFile, read_job_file
from jobs.storage import JobKeys, Store, get_verified
from jobs.storage.keys import content_type
from jobs.task import Task
from jobs.task_line import MAX_LINE_BYTES, read_task
from sd_core.samplers import evaluations

log = logging.getLogger(__name__)

PART_SIZE = 10_000
"""Tasks in one part of a plan: a few hundred kilobytes compressed."""

MAX_PART_BYTES = 64 * 2**20
"""One part of a plan, compressed."""

MAX_PART_TEXT_BYTES = 512 * 2**20
"""The lines of one part. Those of ordinary prompts are a few megabytes."""

PARTS_KEPT = 2
"""Parts of a plan that a reader keeps, compressed; unpacking one again takes milliseconds."""

_WRITE_ANEW = "submit or run the job's manifest again, which writes it anew"

_BYTES_PER_PIXEL = {"png": 1.6, "jpeg": 0.4, "webp": 0.25}
"""Of photographs from Stable Diffusion at quality 95; flat drawings take a tenth. An estimate for
buying disks, good to a factor of two."""

_BYTES_PER_IMAGE = 3000
"""Metadata inside the image, its record and its line of the plan."""

_GZIP_LEVEL = 6


@dataclass
class PlanSummary:
    """What a job will cost.

    images: how many. evaluations: of the model, over all images. rows: of the model's batches: an
    evaluation is two, or one with guidance 1. shapes: (width, height) in pixels -> images.
    samplers: name -> images. inputs: distinct init images and masks. output_bytes: an estimate.
    first, last: the first and last task; None if there is none.
    """

    images: int = 0
    evaluations: int = 0
    rows: int = 0
    shapes: Counter[tuple[int, int]] = field(default_factory=Counter)
    samplers: Counter[str] = field(default_factory=Counter)
    inputs: int = 0
    output_bytes: int = 0
    first: Task | None = None
    last: Task | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values; shapes are a list, the most frequent first."""
        return {
            "images": self.images,
            "evaluations": self.evaluations,
            "rows": self.rows,
            "shapes": [
                {"width": width, "height": height, "images": count}
                for (width, height), count in self.shapes.most_common()
            ],
            "samplers": dict(self.samplers.most_common()),
            "inputs": self.inputs,
            "output_bytes": self.output_bytes,
            "first": None if self.first is None else self.first.to_json(),
            "last": None if self.last is None else self.last.to_json(),
        }


def summarize(tasks: Iterable[Task]) -> PlanSummary:
    """Add up what the tasks will cost."""
    summary = PlanSummary()
    inputs: set[str] = set()
    # Tasks differ mostly in prompt and seed: what costs the same is counted first, added up later.
    kinds: Counter[tuple[Any, ...]] = Counter()
    for task in tasks:
        if summary.first is None:
            summary.first = task
        summary.last = task
        s = task.sampling
        strength = None
        if task.init_image is not None:
            strength = s.strength
            inputs.add(task.init_image)
            if task.mask is not None:
                inputs.add(task.mask)
        kinds[s.sampler, s.steps, strength, s.guidance, s.width, s.height, task.format] += 1
        if len(kinds) > _MAX_KINDS:
            _add(summary, kinds)
            kinds.clear()
    _add(summary, kinds)
    summary.inputs = len(inputs)
    return summary


_MAX_KINDS = 10_000  # a .csv can set its own guidance in a million rows

_evaluations = lru_cache(maxsize=10_000)(evaluations)


def evaluations_of(task: Task) -> int:
    """Model evaluations that the task's image takes."""
    sampling = task.sampling
    strength = None if task.init_image is None else sampling.strength
    return _evaluations(sampling.sampler, sampling.steps, strength)


def _add(summary: PlanSummary, kinds: Counter[tuple[Any, ...]]) -> None:
    for (sampler, steps, strength, guidance, width, height, format), images in kinds.items():
        cost = images * _evaluations(sampler, steps, strength)
        summary.images += images
        summary.evaluations += cost
        summary.rows += cost if guidance == 1.0 else 2 * cost
        summary.shapes[width, height] += images
        summary.samplers[sampler] += images
        image_bytes = _BYTES_PER_PIXEL[format] * width * height + _BYTES_PER_IMAGE
        summary.output_bytes += images * round(image_bytes)


def write_plan(
    store: Store,
    keys: JobKeys,
    tasks: Iterable[Task],
    *,
    part_size: int = PART_SIZE,
    replace: bool = False,
) -> list[str]:
    """Write the tasks into the job's folder, `part_size` a part; the parts' sha256, as stored.

    The same tasks give the same bytes. Parts that are there already are left, if they hold the
    same tasks; otherwise `JobConflictError`: images of another job may be there too. replace: the
    folder is known to be this job's, so what differs is damaged, and written anew.
    Raises `InputError` for prompts that are too long together, and `StoreError`.
    """
    source = iter(tasks)
    digests: list[str] = []
    while part := list(itertools.islice(source, part_size)):
        digests.append(_write_part(store, keys, len(digests), _dump(part), replace=replace))
    if store.head(keys.plan_part(len(digests))) is not None:
        raise _conflict(store, keys)
    return digests


def _write_part(store: Store, keys: JobKeys, number: int, lines: bytes, *, replace: bool) -> str:
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
        return sha256(_same(store, keys, number, lines)).hexdigest()
    except (JobConflictError, DamagedError):
        if not replace:
            raise
    log.warning("%s is damaged; it is written anew", store.url(key))
    store.put(key, data, overwrite=True, content_type=content_type(key))
    return sha256(data).hexdigest()


def _same(store: Store, keys: JobKeys, number: int, lines: bytes) -> bytes:
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
        for line in _unpacked(data, PART_SIZE):
            if not lines.startswith(line, place):
                raise _conflict(store, keys)
            place += len(line)
    except ValueError as error:
        raise _damaged(store, key, f"{error}; delete it, and run or submit again") from error
    if place != len(lines):
        raise _conflict(store, keys)
    return data


def check_plan(
    store: Store, keys: JobKeys, tasks: Iterable[Task], *, part_size: int = PART_SIZE
) -> None:
    """Raises `JobConflictError` if the folder's plan, as far as it was written, has other tasks
    than these, `StoreError`.
    """
    source = iter(tasks)
    for number in itertools.count():
        if store.head(keys.plan_part(number)) is None:
            return
        _same(store, keys, number, _dump(itertools.islice(source, part_size)))


def read_plan(store: Store, keys: JobKeys) -> Iterator[Task]:
    """The tasks of a job in order. Raises `NotFoundError` if the job has no plan, `DamagedError`
    if it is not what was submitted, and `StoreError`.
    """
    described = _described(store, keys)
    index = 0
    for number in itertools.count():
        key = keys.plan_part(number)
        try:
            data = _read_part(store, keys, number, described)
        except NotFoundError:
            if number == 0:
                raise NotFoundError(
                    f"{store.url(keys.prefix.rstrip('/'))} has no plan, so it is no job's folder"
                ) from None
            break
        with _damage_named(store, key):
            for line in _unpacked(data, PART_SIZE):
                yield read_task(line, index)
                index += 1
    if described is not None and index != described.images:
        raise DamagedError(
            f"{store.url(keys.plan_prefix.rstrip('/'))} has {index:,} of {described.images:,} "
            f"images; {_WRITE_ANEW}"
        )


class PlanReader:
    """Single tasks of a plan, by index; the parts looked at last stay in memory, compressed.

    Thread-safe.
    """

    def __init__(self, store: Store, keys: JobKeys, *, part_size: int = PART_SIZE) -> None:
        self._store = store
        self._keys = keys
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
        with _damage_named(self._store, self._keys.plan_part(part)):
            lines = _unpacked(data, self._part_size)
            for index in indices:
                line = next(itertools.islice(lines, index - place, None), None)
                if line is None:
                    url = self._store.url(self._keys.prefix.rstrip("/"))
                    raise NotFoundError(f"{url} has no image {index}")
                yield read_task(line, index)
                place = index + 1

    def _read(self, part: int) -> bytes:
        described = _described(self._store, self._keys)
        data = _read_part(self._store, self._keys, part, described)
        if described is None or described.parts is None:
            with _damage_named(self._store, self._keys.plan_part(part)):
                deque(_unpacked(data, self._part_size), maxlen=0)  # by gzip's own checksum
        return data


def _described(store: Store, keys: JobKeys) -> JobFile | None:
    """None before the plan is complete."""
    try:
        return read_job_file(store, keys)
    except NotFoundError:
        return None


def _read_part(store: Store, keys: JobKeys, number: int, described: JobFile | None) -> bytes:
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
            raise DamagedError(f"{error}; {_WRITE_ANEW}") from None
    else:
        raise NotFoundError(f"{store.url(key)} is no part of the plan")
    if not data:
        raise _damaged(store, key, f"it is empty; {_WRITE_ANEW}")
    return data


def _unpacked(data: bytes, most_lines: int) -> Iterator[bytes]:
    """The lines of a part. Raises `ValueError`."""
    return gunzip_lines(
        data, most_lines=most_lines, line_bytes=MAX_LINE_BYTES, total_bytes=MAX_PART_TEXT_BYTES
    )


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def _dump(tasks: Iterable[Task]) -> bytes:
    return "".join(f"{_encode(task.to_json())}\n" for task in tasks).encode("ascii")


@contextmanager
def _damage_named(store: Store, key: str) -> Iterator[None]:
    """Whatever is wrong with the lines of a part says which part it is."""
    try:
        yield
    except ValueError as error:
        raise _damaged(store, key, str(error)) from error


def _damaged(store: Store, key: str, flaw: str) -> DamagedError:
    return DamagedError(f"{store.url(key)} is damaged: {flaw}")


def _conflict(store: Store, keys: JobKeys) -> JobConflictError:
    folder = store.url(keys.prefix.rstrip("/"))
    return JobConflictError(f"{folder} holds another job; choose another folder or job name")
