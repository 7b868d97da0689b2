"""Records that are missing though their image is there, before a job ends.

A shard's file of records is rewritten whole. A worker that slept through the end of its lease may
write it once more, over lines that its successor added meanwhile; the images are safe, and hold all
that their lines do but the timings.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection

from jobs.errors import NotFoundError, StoreError
from jobs.formatting import counted
from jobs.pin import read_pin
from jobs.plan import PlanReader, read_plan
from jobs.records import read_records
from jobs.shards import ShardTable
from jobs.storage import JobKeys, Store
from jobs.task import spec_digest
from worker.finish import ShardRecords
from worker.stored import record_in_store

log = logging.getLogger(__name__)


def mend_records(store: Store, keys: JobKeys, *, images: int, failed: Collection[int]) -> int:
    """Writes the lines of images that have none; how many they were.

    images: of the job. failed: those that are not expected. Raises `StoreError`, also if an image
    is neither recorded nor in the store.
    """
    seen = bytearray(images)
    for record in read_records(store, keys, images=images):
        seen[record["index"]] = 1
    for index in failed:
        seen[index] = 1
    missing = [index for index, known in enumerate(seen) if not known]
    if not missing:
        return 0
    log.warning("%s without a record, written anew now", counted(len(missing), "image"))
    digest = read_pin(store, keys)["digest"]
    shards = ShardTable(images)
    deque(shards.watch(read_plan(store, keys)), maxlen=0)
    by_shard: dict[int, list[int]] = {}
    for index in missing:
        by_shard.setdefault(shards.shard_of(index), []).append(index)
    plan = PlanReader(store, keys)
    for shard, indices in by_shard.items():
        with ShardRecords(store, keys, shard) as records:
            for task in plan.tasks(indices):
                spec = spec_digest(task, digest)
                key = keys.image(task.name, spec, task.format)
                try:
                    line = record_in_store(store, keys, key, spec)
                    records.add(line | {"index": task.index})
                except NotFoundError:
                    raise StoreError(
                        f"{store.url(key)} is gone although the ledger says that it is done; "
                        f"sdbatch resume {keys.job_id} renders it again"
                    ) from None
    return len(missing)
