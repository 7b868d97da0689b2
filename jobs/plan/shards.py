"""Shards: neighbouring images of one model that are claimed, rendered and recorded together.

Where a shard ends depends on the plan alone, so a job begun on one machine continues in a cluster,
and its records lie in the same files. Shapes may be mixed in a shard: the engine renders several
shapes side by side, and a sweep over sizes changes them at every image.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

from jobs.ledger.types import ModelShards
from jobs.plan.cost import evaluations_of, rows_of
from jobs.task import ModelPart, Task

MOST_IMAGES = 64
LEAST_IMAGES = 4  # of small jobs, whose images are spread over several workers
SHARDS_AIMED_AT = 64

# Batch rows times pixels: 64 images of 512×512 by PLMS in 50 steps with guidance.
MOST_WORK = MOST_IMAGES * 2 * 51 * 512 * 512


class ShardTable:
    """Where the shards of a job end; filled by `add`, task by task.

    total: images of the job. ends: for each shard the index after its last image. evaluations: of
    the model, over all images.
    """

    def __init__(self, total: int) -> None:
        self.ends = array("Q")
        self.evaluations = 0
        self._total = total
        self._limit = min(MOST_IMAGES, max(LEAST_IMAGES, -(-total // SHARDS_AIMED_AT)))
        self._start = self._stop = self._work = 0
        self._model: str | None = None

    @classmethod
    def of(cls, tasks: Iterable[Task], total: int) -> ShardTable:
        """The table of these tasks. total: how many they are."""
        table = cls(total)
        for task in tasks:
            table.add(task)
        return table

    def add(self, task: Task) -> None:
        """Take the next task of the plan; the last shard ends with the last of them."""
        evaluations = evaluations_of(task)
        own = rows_of(task) * task.sampling.width * task.sampling.height
        images = self._stop - self._start
        full = images == self._limit or self._work + own > MOST_WORK
        if images and (full or task.model != self._model):
            self.ends.append(self._stop)
            self._start, self._work = self._stop, 0
        self._model = task.model
        self.evaluations += evaluations
        self._work += own
        self._stop += 1
        if self._stop == self._total:
            self.ends.append(self._stop)

    def of_models(self, parts: Sequence[ModelPart]) -> tuple[ModelShards, ...]:
        """The shards of each model of a job, which end where its images do."""
        found, before = [], 0
        for part, images in zip(parts, accumulate(part.images for part in parts), strict=True):
            shards = bisect_left(self.ends, images) + 1
            found.append(ModelShards(part.name, shards - before, part.images))
            before = shards
        return tuple(found)

    def shard_of(self, index: int) -> int:
        """Number of the shard that holds this image."""
        return bisect_right(self.ends, index)
