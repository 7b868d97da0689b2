"""The last stage of an image: encode it, put it in the store, then its record.

The image comes first. If the process dies in between, the record is rebuilt from the image; the
other way round it would speak of an image that is not there.
"""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from jobs.errors import DamagedError, ForeignImageError, NotFoundError
from jobs.records import Record, dump_lines, read_lines
from jobs.storage import JobKeys, Store
from jobs.storage.keys import content_type
from jobs.task import Task
from worker.encode import DEFAULT_QUALITY, encode_image
from worker.meter import NO_METER, Meter
from worker.record import ModelInfo, RenderInfo, image_record, record_line
from worker.stored import record_in_store

log = logging.getLogger(__name__)

FLUSH_EVERY_S = 5.0


@dataclass(frozen=True)
class Finished:
    """record: the image's line. reused: somebody else had written the image already. equal: it was
    made as another image of the job, with the same name and parameters.
    """

    record: Record
    reused: bool
    equal: bool = False


class Records(Protocol):
    """Takes the lines of finished images, from several threads."""

    def add(self, record: Record) -> None: ...


class ShardRecords:
    """The lines of one `records/<shard>.jsonl`, one per image, sorted by index.

    The file is rewritten whole, at most every `interval_s` seconds as lines come in, and at
    `close`. Lines in the store are kept, so a continued shard only adds to them. An image whose
    line is replaced by one that names another (of another model) is removed after that. Threads
    may add at the same time. A context manager.
    """

    def __init__(
        self,
        store: Store,
        keys: JobKeys,
        shard: int,
        *,
        interval_s: float = FLUSH_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._keys = keys
        self._key = keys.records(shard)
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
                self._store.put(
                    self._key, data, overwrite=True, content_type=content_type(self._key)
                )
            except BaseException:
                with self._lock:
                    self._unwritten = True
                raise
            for index, line in stored.items():
                if line["path"] != lines[index]["path"]:
                    self._store.delete(self._keys(line["path"]))

    def _stored(self) -> dict[int, Record]:
        """Damaged lines are left out: the file is written without them, and what they were about
        is looked at again before the job ends.
        """
        lines = read_lines(self._store, self._key, skip_damaged=True)
        return {line["index"]: line for line in lines}

    def close(self) -> None:
        self.flush()

    def __enter__(self) -> ShardRecords:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Finisher:
    """Finishes the images of a job, or of a shard of it; threads may share it.

    overwrite: replace what is in the store (`--force`) instead of keeping it.
    clock_s, now: seconds for timings, and the time of day in UTC for records.
    """

    store: Store
    keys: JobKeys
    model: ModelInfo
    records: Records
    quality: int = DEFAULT_QUALITY
    overwrite: bool = False
    meter: Meter = NO_METER
    clock_s: Callable[[], float] = time.perf_counter
    now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC)

    def finish(
        self,
        pixels: NDArray[np.uint8],
        task: Task,
        render: RenderInfo,
        *,
        damage: str | None = None,
    ) -> Finished:
        """Stores an image and its record, unless somebody else has stored the image meanwhile. What
        is damaged in its place is replaced.

        pixels: (H, W, 3). damage: the digest of what is there and is not what its record says.
        Raises `StoreError` if the store fails, `ValueError` if the record does not fit the format.
        """
        record = image_record(task, self.model, render)
        started = self.clock_s()
        data = encode_image(pixels, record, task.format, self.quality)
        encoded = self.clock_s()
        key = self.keys.image(task.name, record["spec"], task.format)
        stored = self._put(key, data, record["spec"], damage)
        put_s = self.clock_s() - encoded
        timings_s = {"render": render.render_s, "encode": encoded - started, "put": put_s}
        equal = False
        if stored is None:
            self.meter.uploaded(put_s, len(data))
            finished = self.now().isoformat(timespec="seconds")
            path = self.keys.path(key)
            line = record_line(record, path, data, timings_s=timings_s, finished=finished)
        else:
            line, equal = stored | {"index": task.index}, stored["index"] != task.index
        self.records.add(line)
        return Finished(line, reused=stored is not None, equal=equal)

    def _put(self, key: str, data: bytes, spec: str, damage: str | None) -> Record | None:
        """Writes an image; if another one is there and whole, that one's record instead."""

        def put(overwrite: bool) -> bool:
            return self.store.put(
                key,
                data,
                overwrite=overwrite,
                content_type=content_type(key),
                metadata={"spec": spec},
            )

        if put(self.overwrite):
            return None
        try:
            return record_in_store(self.store, self.keys, key, spec, damage=damage)
        except ForeignImageError:
            raise
        except (DamagedError, NotFoundError) as error:
            # Looked at again only now, and not before it was rendered: others may have replaced it.
            log.warning("%s; it is replaced", error)
        put(True)
        return None
