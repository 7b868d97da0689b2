"""Records that are missing though their image is there, and the other way round, before a job ends.

A shard's file of records is rewritten whole. A worker that slept through the end of its lease may
write it once more, over lines that its successor added meanwhile; the images are safe, and hold all
that their lines do but the timings.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence, Set

from jobs.errors import DamagedError, NotFoundError, StoreError
from jobs.folder.layout import JobFolder
from jobs.folder.model_file import read_pin
from jobs.folder.plan import PlanReader, read_plan
from jobs.folder.record_writer import ShardRecords
from jobs.folder.records import WHOLE, Record, read_records
from jobs.formatting import agreeing, counted
from jobs.plan.shards import ShardTable
from jobs.task import Task, spec_digest
from worker.output.stored import record_in_store

log = logging.getLogger(__name__)


class BrokenImagesError(StoreError):
    """Images that were made are gone from the store, or damaged. indices: of those images."""

    def __init__(self, indices: Sequence[int], first: str) -> None:
        self.indices = list(indices)
        gone = agreeing(len(self.indices), "is", "are")
        super().__init__(
            f"{counted(len(self.indices), 'image')} {gone} gone or damaged, though made before "
            f"({first}); run the job again, or sdbatch resume it"
        )


def check_images(folder: JobFolder, *, images: int) -> None:
    """Raises `BrokenImagesError` if recorded images are gone, or of another size than was recorded.

    images: of the job. One list of the images and the records are read, and some hundred bytes an
    image kept. Raises `StoreError`.
    """
    # Hashes, as a million paths would take more memory.
    there = {
        hash((folder.keys.path(o.key), o.size_bytes))
        for o in folder.list(folder.keys.images_prefix)
    }
    broken: dict[int, str] = {}
    for record in read_records(folder, needs=WHOLE, images=images, skip_damaged=True):
        if hash((record["path"], record["bytes"])) not in there:
            key = folder.keys(record["path"])
            info = folder.head(key)  # the list may lag behind
            if info is None or info.size_bytes != record["bytes"]:
                broken[record["index"]] = key
    if broken:
        raise BrokenImagesError(list(broken), folder.url_of(next(iter(broken.values()))))


def repair_records(folder: JobFolder, *, images: int, failed: Set[int]) -> int:
    """Writes the lines of images that have none; how many shards the job has.

    images: of the job. failed: those that are not expected. Raises `BrokenImagesError` if images
    are neither recorded nor in the store, whole, once the others have their lines; `StoreError`.
    """
    shards = ShardTable.of(read_plan(folder), images)
    seen = bytearray(images)
    for record in read_records(folder, needs=WHOLE, images=images, skip_damaged=True):
        seen[record["index"]] = 1
    missing = (index for index in range(images) if not seen[index] and index not in failed)
    plan, mended = PlanReader(folder), 0
    broken: dict[int, str] = {}
    for shard, indices in itertools.groupby(missing, shards.shard_of):
        with ShardRecords(folder, shard) as records:
            # The file itself says more than the list of files, which may lag behind.
            lacking = [index for index in indices if not _is_whole(records.line(index))]
            for task in plan.tasks(lacking):
                try:
                    records.add(_line_of(folder, task))
                    mended += 1
                except (NotFoundError, DamagedError) as error:
                    broken[task.index] = str(error)
    if mended:
        log.warning("%s without a record: written anew", counted(mended, "image"))
    if broken:
        raise BrokenImagesError(list(broken), next(iter(broken.values())))
    return len(shards.ends)


def _is_whole(line: Record | None) -> bool:
    return line is not None and all(name in line for name in WHOLE)


def _line_of(folder: JobFolder, task: Task) -> Record:
    """Read off the task's image. Raises `NotFoundError`, `DamagedError` and `StoreError`."""
    spec = spec_digest(task, read_pin(folder, task.model)["digest"])
    key = folder.keys.image(task.name, spec, task.format)
    return record_in_store(folder, key, spec) | {"index": task.index}
