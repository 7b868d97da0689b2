"""Plans: what a job will cost, and its tasks written out in the store.

Tasks come and go one at a time here, so memory does not grow with the job.
"""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from jobs.errors import JobConflictError, NotFoundError, StoreError
from jobs.storage.base import Store
from jobs.storage.keys import JobKeys
from jobs.task import Task
from sd_core.samplers import evaluations

PART_SIZE = 10_000
"""Tasks in one part of a plan: a few hundred kilobytes compressed."""

PARTS_KEPT = 2
"""Parts of a plan that a reader keeps: 10,000 lines are a few megabytes."""

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
    store: Store, keys: JobKeys, tasks: Iterable[Task], *, part_size: int = PART_SIZE
) -> int:
    """Write the tasks into the job's folder, `part_size` a part; returns how many parts.

    The same tasks give the same bytes. Parts that are there already are left, if they hold the
    same tasks; otherwise `JobConflictError`: images of another job may be there too.
    """
    source = iter(tasks)
    parts = 0
    while part := list(itertools.islice(source, part_size)):
        lines = _dump(part)
        key = keys.plan_part(parts)
        data = gzip.compress(lines, _GZIP_LEVEL, mtime=0)
        if not store.put(key, data, content_type="application/gzip"):
            _require_same(store, keys, key, lines)
        parts += 1
    if store.head(keys.plan_part(parts)) is not None:
        raise _conflict(store, keys)
    return parts


def check_plan(
    store: Store, keys: JobKeys, tasks: Iterable[Task], *, part_size: int = PART_SIZE
) -> None:
    """Raises `JobConflictError` if the folder's plan, as far as it was written, has other tasks
    than these, `StoreError`.
    """
    source = iter(tasks)
    for number in itertools.count():
        key = keys.plan_part(number)
        if store.head(key) is None:
            return
        _require_same(store, keys, key, _dump(itertools.islice(source, part_size)))


def read_plan(store: Store, keys: JobKeys) -> Iterator[Task]:
    """The tasks of a job in order. Raises `NotFoundError` if the job has no plan."""
    for number in itertools.count():
        key = keys.plan_part(number)
        try:
            lines = _lines_of(store, key)
        except NotFoundError:
            if number == 0:
                raise NotFoundError(
                    f"{store.url(keys.prefix.rstrip('/'))} has no plan, so it is no job's folder"
                ) from None
            return
        yield from _parsed(store, key, lines)


class PlanReader:
    """Single tasks of a plan, by index; the parts looked at last stay in memory. Thread-safe."""

    def __init__(self, store: Store, keys: JobKeys, *, part_size: int = PART_SIZE) -> None:
        self._store = store
        self._keys = keys
        self._part_size = part_size
        self._lines = lru_cache(maxsize=PARTS_KEPT)(self._read)

    def tasks(self, indices: Iterable[int]) -> Iterator[Task]:
        """The tasks of these indices. Raises `StoreError`, `NotFoundError` without a plan."""
        for index in indices:
            part, number = divmod(index, self._part_size)
            line = self._lines(part)[number : number + 1]
            if not line:
                raise NotFoundError(f"{self._store.url(self._keys.prefix)} has no image {index}")
            yield from _parsed(self._store, self._keys.plan_part(part), line)

    def _read(self, part: int) -> list[bytes]:
        return _lines_of(self._store, self._keys.plan_part(part))


def _lines_of(store: Store, key: str) -> list[bytes]:
    """The lines of a part. Raises `StoreError`, `NotFoundError`."""
    try:
        lines = _decompress(store.get(key)).splitlines()
    except ValueError as error:
        raise StoreError(f"{store.url(key)} is damaged: {error}") from error
    if not lines:
        raise StoreError(f"{store.url(key)} is damaged: it is empty")
    return lines


def _parsed(store: Store, key: str, lines: Iterable[bytes]) -> Iterator[Task]:
    try:
        for line in lines:
            yield Task.from_json(json.loads(line))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{store.url(key)} is damaged: {error}") from error


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def _decompress(data: bytes) -> bytes:
    """Raises `ValueError`, whatever is wrong with the data."""
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(str(error)) from error


def _dump(tasks: Iterable[Task]) -> bytes:
    return "".join(f"{_encode(task.to_json())}\n" for task in tasks).encode("ascii")


def _require_same(store: Store, keys: JobKeys, key: str, lines: bytes) -> None:
    """Compares what is inside: another version of zlib may have compressed it otherwise."""
    try:
        same = _decompress(store.get(key)) == lines
    except ValueError as error:
        raise StoreError(f"{store.url(key)} is damaged: {error}") from error
    if not same:
        raise _conflict(store, keys)


def _conflict(store: Store, keys: JobKeys) -> JobConflictError:
    folder = store.url(keys.prefix.rstrip("/"))
    return JobConflictError(f"{folder} holds another job; choose another folder or job name")
