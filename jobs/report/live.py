"""The gallery of a job that goes on, written again and again.

Each time only records that are new are read, and only files that changed are written. It has no
contact sheets: those read whole images.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

from jobs.folder.layout import JobFolder
from jobs.folder.records import WHOLE, Record, read_lines
from jobs.report.gallery import GALLERY_LIMIT, gallery_page, unfinished_note
from jobs.report.shards import MOST_LINKS, SHARD_SIZE, ChangedFiles, IndexShard, write_shard
from jobs.task import Failure

REFRESH_S = 60.0
"""Seconds between two galleries of a job."""

MOST_KEPT = 64
"""Files of records that are kept between finding out where their images go and writing these."""


class LiveGallery:
    """Remembers what was written, and from which records. Not for several threads.

    planned: images of the job.
    """

    def __init__(self, folder: JobFolder, planned: int) -> None:
        self._folder = folder
        self._planned = planned
        self._files = ChangedFiles(folder)
        # By files of records: their size and time as they were read, and the numbers of the files
        # of the index that have their images.
        self._read: dict[str, tuple[int, float | None]] = {}
        self._numbers: dict[str, frozenset[int]] = {}
        self._kept: OrderedDict[str, list[Record]] = OrderedDict()
        self._shards: dict[int, IndexShard] = {}

    def refresh(
        self, failures: Sequence[Failure] = (), *, go_on: Callable[[], bool] = lambda: True
    ) -> bool:
        """Bring the gallery up to date; False if there is nothing to show, or it was broken off.

        go_on: asked before each file, whether to read or to write it. Raises `StoreError`.
        """
        try:
            return self._refresh(failures, go_on)
        finally:
            self._kept.clear()

    def _refresh(self, failures: Sequence[Failure], go_on: Callable[[], bool]) -> bool:
        prefix = self._folder.keys.records_prefix
        listed = {i.key: (i.size_bytes, i.modified_s) for i in self._folder.list(prefix)}
        changed = [key for key, state in listed.items() if self._read.get(key) != state]
        dirty: set[int] = set()
        for key in self._numbers.keys() - listed.keys():
            dirty |= self._numbers.pop(key)
        for key in changed:
            if not go_on():
                return False
            numbers = frozenset(r["index"] // SHARD_SIZE for r in self._records(key))
            dirty |= numbers | self._numbers.get(key, frozenset())
            self._numbers[key] = numbers
        for number in sorted(dirty):
            if not go_on():
                return False
            self._write(number)
        self._read = listed
        if not (self._shards or failures) or not go_on():
            return False
        self._write_page(failures)
        return True

    def _write(self, number: int) -> None:
        records: dict[int, Record] = {}
        for key in [key for key, numbers in self._numbers.items() if number in numbers]:
            for record in self._records(key):
                if record["index"] // SHARD_SIZE == number:
                    records.setdefault(record["index"], record)
        self._shards.pop(number, None)
        if records:
            self._shards[number] = write_shard(
                self._folder, number, records.values(), self._files, links=MOST_LINKS
            )

    def _write_page(self, failures: Sequence[Failure]) -> None:
        first = min(self._shards, default=0)
        for number, shard in self._shards.items():
            if number != first and shard.links:
                self._shards[number] = replace(shard, links=())  # only the first file's are shown
        shards = [self._shards[number] for number in sorted(self._shards)]
        total = sum(shard.images for shard in shards)
        note = unfinished_note(total, len(failures), self._planned)
        more = None if note is None else f"{note}; load this page again to see more"
        page = gallery_page(self._folder.keys.job_id, shards, total, failures, (), more)
        self._files.put(self._folder.keys.index, page.encode())

    def _records(self, key: str) -> list[Record]:
        """The records of a file that the gallery has room for, and that it can be made of."""
        if key not in self._kept:
            last = min(self._planned, GALLERY_LIMIT)
            self._kept[key] = [
                record
                for record in read_lines(self._folder.store, key, skip_damaged=True)
                if record["index"] < last and all(name in record for name in WHOLE)
            ]
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return self._kept[key]
