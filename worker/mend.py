"""Records that are missing though their image is there, before a job ends.

A shard's file of records is rewritten whole. A worker that slept through the end of its lease may
write it once more, over lines that its successor added meanwhile; the images are safe, and hold all
that their lines do but the timings.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Set

from jobs.errors import DamagedError, NotFoundError, StoreError
from jobs.formatting import counted
from jobs.pin import read_pin
from jobs.plan import PlanReader, read_plan
from jobs.records import WHOLE, Record, read_records
from jobs.shards import ShardTable
from jobs.storage import JobKeys, Store
from jobs.task import Task, spec_digest
from worker.finish import ShardRecords
from worker.stored import record_in_store

log = logging.getLogger(__name__)


def mend_records(store: Store, keys: JobKeys, *, images: int, failed: Set[int]) -> int:
    """Writes the lines of images that have none; how many shards the job has.

    images: of the job. failed: those that are not expected. Raises `StoreError`, also if an image
    is neither recorded nor in the store, whole.
    """
    shards = ShardTable(images)
    deque(shards.watch(read_plan(store, keys)), maxlen=0)
    seen = bytearray(images)
    for record in read_records(store, keys, needs=WHOLE, images=images, skip_damaged=True):
        seen[record["index"]] = 1
    missing = (index for index in range(images) if not seen[index] and index not in failed)
    plan, mended = PlanReader(store, keys), 0
    for shard, indices in itertools.groupby(missing, shards.shard_of):
        with ShardRecords(store, keys, shard) as records:
            # The file itself says more than the list of files, which may lag behind.
            lacking = [index for index in indices if not _is_whole(records.line(index))]
            for task in plan.tasks(lacking):
                records.add(_line_of(store, keys, task))
        mended += len(lacking)
    if mended:
        log.warning("%s without a record: written anew", counted(mended, "image"))
    return len(shards.ends)


def _is_whole(line: Record | None) -> bool:
    return line is not None and all(name in line for name in WHOLE)


def _line_of(store: Store, keys: JobKeys, task: Task) -> Record:
    """Read off the task's image. Raises `StoreError` if that is gone or damaged."""
    spec = spec_digest(task, read_pin(store, keys)["digest"])
    try:
        line = record_in_store(store, keys, keys.image(task.name, spec, task.format), spec)
    except (NotFoundError, DamagedError) as error:
        raise StoreError(
            f"{error}, though it was made; sdbatch resume {keys.job_id} renders it again, and so "
            "does the sdbatch run that made it"
        ) from None
    return line | {"index": task.index}
