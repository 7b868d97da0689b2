"""Shards: neighbouring images of a job that are claimed, rendered and recorded together.

Where a shard ends depends on the plan alone, so a job begun on one machine continues in a cluster,
and its records lie in the same files. Shapes may be mixed in a shard: the engine renders several
shapes side by side, and a sweep over sizes changes them at every image.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from jobs.plan import evaluations_of
from jobs.task import Task

MOST_IMAGES = 64
LEAST_IMAGES = 4  # of small jobs, whose images are spread over several workers
SHARDS_AIMED_AT = 64

# Batch rows times pixels: 64 images of 512×512 by PLMS in 50 steps with guidance.
MOST_WORK = MOST_IMAGES * 2 * 51 * 512 * 512


class ShardTable:
    """Where the shards of a job end; filled by `watch`.

    total: images of the job. ends: for each shard the index after its last image. evaluations: of
    the model, over all images.
    """

    def __init__(self, total: int) -> None:
        self.ends = array("Q")
        self.evaluations = 0
        self._limit = min(MOST_IMAGES, max(LEAST_IMAGES, -(-total // SHARDS_AIMED_AT)))

    def watch(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """The tasks of the plan as they are, while the table is filled. Use it to the end."""
        start = stop = work = 0
        for task in tasks:
            evaluations = evaluations_of(task)
            rows = evaluations if task.sampling.guidance == 1.0 else 2 * evaluations
            own = rows * task.sampling.width * task.sampling.height
            if stop > start and (stop - start == self._limit or work + own > MOST_WORK):
                self.ends.append(stop)
                start, work = stop, 0
            self.evaluations += evaluations
            work += own
            stop += 1
            yield task
        if stop > start:
            self.ends.append(stop)

    def shard_of(self, index: int) -> int:
        """Number of the shard that holds this image."""
        return bisect_right(self.ends, index)
