"""From an image's number to its record: the ledger knows the shard, the store has its records."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jobs.dashboard.cache import BoundedCache
from jobs.errors import NotFoundError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.records import Record, read_lines
from jobs.ledger.base import Ledger
from jobs.ledger.types import JobStatus, check_readable
from jobs.storage import Store

IMAGES_KEPT = 20_000
"""Images whose records are kept, whole shards of them."""

ENDS_KEPT = 1_000_000
"""Ends of shards that are kept, whole jobs of them; the largest job has 160,000."""

MOST_SHARDS_READ = 8
"""Files of records that one question reads at most."""

SHARDS_LOCKED = 64
"""Files that are read at the same time at most, the same one never twice."""


@dataclass(frozen=True)
class JobIndex:
    """A job's folder and its shards."""

    folder: JobFolder
    created_s: float
    ends: Sequence[int]

    def shard_of(self, index: int) -> int:
        """The number of the shard that has an image. Raises `NotFoundError`."""
        if not 0 <= index < (self.ends[-1] if self.ends else 0):
            raise NotFoundError(f"{self.folder.keys.job_id} has no image {index}")
        return bisect.bisect_right(self.ends, index)


class RecordIndex:
    """Finds records of jobs in a ledger. Safe to use from any thread.

    open_store: from a job's address in the ledger to its store. Methods raise `LedgerError`,
    `StoreError`, `NotFoundError`, and `InputError` if the store may not be used from here.
    """

    def __init__(self, ledger: Ledger, open_store: Callable[[str], Store]) -> None:
        self._ledger = ledger
        self._open_store = open_store
        self._ends: BoundedCache[tuple[str, float], list[int]] = BoundedCache(ENDS_KEPT, len)
        self._records: BoundedCache[tuple[str, float, int], Mapping[int, Record]] = BoundedCache(
            IMAGES_KEPT, len
        )
        self._reading = [threading.Lock() for _ in range(SHARDS_LOCKED)]

    def job(self, job_id: str) -> JobIndex:
        """One job. A job that was entered again under its name is another one."""
        status: JobStatus = check_readable(self._ledger.status(job_id))
        folder = JobFolder(self._open_store(status.store), JobKeys(status.job_id))
        known = status.job_id, status.created_s
        ends = self._ends.get(known)
        if ends is None:
            ends = self._ledger.shard_ends(job_id)
            self._ends.put(known, ends)
        return JobIndex(folder, status.created_s, ends)

    def record(self, job: JobIndex, index: int) -> Record:
        """The record of a finished image."""
        found = self._of_shard(job, job.shard_of(index), index).get(index)
        if found is None:
            raise NotFoundError(f"image {index} of {job.folder.keys.job_id} is not there yet")
        return found

    def records(self, job: JobIndex, indices: Sequence[int]) -> list[Record]:
        """Records of those of the images that are finished, of the first few shards among them."""
        found: list[Record] = []
        shards: set[int] = set()
        for index in indices:
            shard = job.shard_of(index)
            if shard in shards or len(shards) < MOST_SHARDS_READ:
                shards.add(shard)
                record = self._of_shard(job, shard, index).get(index)
                found += [] if record is None else [record]
        return found

    def before(self, job: JobIndex, index: int, limit: int) -> tuple[list[Record], int]:
        """Records of finished images below `index`, the highest first, and where to go on; there is
        nothing more once that is 0. Of many shards without records only a few are looked at.
        """
        found: list[Record] = []
        stop = min(index, job.ends[-1] if job.ends else 0)
        for _ in range(MOST_SHARDS_READ):
            if stop <= 0 or len(found) >= limit:
                break
            shard = job.shard_of(stop - 1)
            start = job.ends[shard - 1] if shard else 0
            of_shard = self._of_shard(job, shard, stop - 1)
            for at in range(stop - 1, start - 1, -1):
                if at in of_shard:
                    found.append(of_shard[at])
                stop = at
                if len(found) >= limit:
                    break
        return found, stop

    def _of_shard(self, job: JobIndex, shard: int, wanted: int) -> Mapping[int, Record]:
        """Records of a shard by index; read again where the wanted one is not among them."""
        known = job.folder.keys.job_id, job.created_s, shard
        with self._reading[hash(known) % SHARDS_LOCKED]:
            kept = self._records.get(known)
            if kept is not None and wanted in kept:
                return kept
            lines = read_lines(job.folder.store, job.folder.keys.records(shard), skip_damaged=True)
            read = {record["index"]: record for record in lines}
            self._records.put(known, read)
            return read
