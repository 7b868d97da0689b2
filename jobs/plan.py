"""Plans: what a job will cost, and its tasks written out in the store.

Tasks come and go one at a time here, so memory does not grow with the job.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from jobs.errors import DamagedError, NotFoundError
from jobs.plan_part import (
    PART_SIZE,
    WRITE_ANEW,
    conflict,
    damage_named,
    describe,
    dump,
    read_part,
    same_part,
    unpacked,
    write_part,
)
from jobs.storage import JobKeys, Store
from jobs.task import Task
from jobs.task_line import read_task
from sd_core.samplers import evaluations

PARTS_KEPT = 2
"""Parts of a plan that a reader keeps, compressed; unpacking one again takes milliseconds."""

_BYTES_PER_PIXEL = {"png": 1.6, "jpeg": 0.4, "webp": 0.25}
"""Of photographs from Stable Diffusion at quality 95; flat drawings take a tenth. An estimate for
buying disks, good to a factor of two."""

_BYTES_PER_IMAGE = 3000
"""Metadata inside the image, its record and its line of the plan."""


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
        digests.append(write_part(store, keys, len(digests), dump(part), replace=replace))
    if store.head(keys.plan_part(len(digests))) is not None:
        raise conflict(store, keys)
    return digests


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
        same_part(store, keys, number, dump(itertools.islice(source, part_size)))


def read_plan(store: Store, keys: JobKeys) -> Iterator[Task]:
    """The tasks of a job in order. Raises `NotFoundError` if the job has no plan, `DamagedError`
    if it is not what was submitted, and `StoreError`.
    """
    described = describe(store, keys)
    index = 0
    for number in itertools.count():
        key = keys.plan_part(number)
        try:
            data = read_part(store, keys, number, described)
        except NotFoundError:
            if number == 0:
                raise NotFoundError(
                    f"{store.url(keys.prefix.rstrip('/'))} has no plan, so it is no job's folder"
                ) from None
            break
        with damage_named(store, key):
            for line in unpacked(data, PART_SIZE):
                yield read_task(line, index)
                index += 1
    if described is not None and index != described.images:
        raise DamagedError(
            f"{store.url(keys.plan_prefix.rstrip('/'))} has {index:,} of {described.images:,} "
            f"images; {WRITE_ANEW}"
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
        with damage_named(self._store, self._keys.plan_part(part)):
            lines = unpacked(data, self._part_size)
            for index in indices:
                line = next(itertools.islice(lines, index - place, None), None)
                if line is None:
                    url = self._store.url(self._keys.prefix.rstrip("/"))
                    raise NotFoundError(f"{url} has no image {index}")
                yield read_task(line, index)
                place = index + 1

    def _read(self, part: int) -> bytes:
        described = describe(self._store, self._keys)
        data = read_part(self._store, self._keys, part, described)
        if described is None or described.parts is None:
            with damage_named(self._store, self._keys.plan_part(part)):
                deque(unpacked(data, self._part_size), maxlen=0)  # by gzip's own checksum
        return data
