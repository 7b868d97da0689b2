"""Writers of records: lines gather in memory and reach their shard's file within seconds."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from jobs.folder.layout import JobFolder
from jobs.folder.records import Record, dump_lines, read_lines
from jobs.plan.shards import ShardTable

FLUSH_EVERY_S = 5.0
"""Seconds between two writes of a shard's file. Lines lost by a crash are read off images."""


class ShardRecords:
    """The lines of one `records/<shard>.jsonl`, one per image, sorted by index.

    The file is rewritten whole, at most every `interval_s` seconds as lines come in, and at
    `close`. Lines in the store are kept, so a continued shard only adds to them. An image whose
    line is replaced by one that names another (of another model) is removed after that. Threads
    may add at the same time. A context manager.
    """

    def __init__(
        self,
        folder: JobFolder,
        shard: int,
        *,
        interval_s: float = FLUSH_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._key = folder.keys.records(shard)
        self._interval_s = interval_s
        self._clock = clock
        self._lines: dict[int, Record] = {}
        self._known: dict[int, Record] | None = None
        self._unwritten = False
        self._flushed_at = clock()
        self._lock = threading.Lock()  # of the fields above
        self._flush_lock = threading.Lock()  # one writer at a time; adding goes on meanwhile

    def add(self, record: Record) -> None:
        """Take the line of an image that is in the store; a later one for its index replaces it."""
        with self._lock:
            self._lines[record["index"]] = record
            self._unwritten = True
            due = self._clock() - self._flushed_at >= self._interval_s
        if due:
            self.flush()

    def line(self, index: int) -> Record | None:
        """The image's line as it was in the store when first asked for one; None without one."""
        with self._lock:
            if self._known is None:
                self._known = self._stored()
            return self._known.get(index)

    def flush(self) -> None:
        """Write what is not written yet."""
        with self._flush_lock:
            with self._lock:
                if not self._unwritten:
                    return
                own = dict(self._lines)
                self._unwritten = False
                self._flushed_at = self._clock()
            try:
                # Read every time: a worker taken for dead may have written here since.
                stored = self._stored()
                lines = stored | own
                data = dump_lines(lines[index] for index in sorted(lines))
                self._folder.put(self._key, data, overwrite=True)
            except BaseException:
                with self._lock:
                    self._unwritten = True
                raise
            for index, line in stored.items():
                if line["path"] != lines[index]["path"]:
                    for path in (line["path"], line.get("thumbnail")):
                        if path is not None:
                            self._folder.delete(self._folder.keys(path))

    def _stored(self) -> dict[int, Record]:
        """Damaged lines are left out: the file is written without them, and what they were about
        is looked at again before the job ends.
        """
        lines = read_lines(self._folder.store, self._key, skip_damaged=True)
        return {line["index"]: line for line in lines}

    def close(self) -> None:
        self.flush()

    def __enter__(self) -> ShardRecords:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


SHARDS_OPEN = 4  # images finish nearly in order, so few shards gather records at a time


class JobRecords:
    """The records of a whole job, shard by shard, a few shards open."""

    def __init__(self, folder: JobFolder, shards: ShardTable) -> None:
        self._folder = folder
        self._shards = shards
        self._open: OrderedDict[int, ShardRecords] = OrderedDict()
        self._lock = threading.Lock()
        self._known: tuple[int, dict[int, Record]] = (-1, {})

    def add(self, record: Record) -> None:
        """Take a line; it reaches the store within seconds, and at `close`."""
        shard = self._shards.shard_of(record["index"])
        with self._lock:
            if shard not in self._open:
                self._open[shard] = ShardRecords(self._folder, shard)
            self._open.move_to_end(shard)
            self._open[shard].add(record)
            if len(self._open) > SHARDS_OPEN:
                _, oldest = self._open.popitem(last=False)
                oldest.close()

    def line(self, index: int) -> Record | None:
        """Line that an earlier run recorded of this image. Quick for indices in order."""
        shard = self._shards.shard_of(index)
        if self._known[0] != shard:
            key = self._folder.keys.records(shard)
            lines = read_lines(self._folder.store, key, skip_damaged=True)
            self._known = (shard, {line["index"]: line for line in lines})
        return self._known[1].get(index)

    def close(self) -> None:
        with self._lock:
            for shard in self._open.values():
                shard.close()
