"""The last stage of an image: encode it, put it in the store, then its record.

The image comes first. If the process dies in between, the record is rebuilt from the image; the
other way round it would speak of an image that is not there.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from jobs.errors import ForeignImageError
from jobs.limits import MAX_RENDERED_BYTES
from jobs.records import Record, dump_lines, read_lines
from jobs.storage import JobKeys, Store
from jobs.storage.keys import content_type
from jobs.task import Task
from worker.encode import DEFAULT_QUALITY, encode_image
from worker.meter import NO_METER, Meter
from worker.record import ModelInfo, RenderInfo, image_record, record_from_image, record_line

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
        self._known: frozenset[int] | None = None
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

    def has(self, index: int) -> bool:
        """Whether the image's line was in the store when first asked."""
        with self._lock:
            if self._known is None:
                lines = read_lines(self._store, self._key)
                self._known = frozenset(line["index"] for line in lines)
            return index in self._known

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
                stored = {line["index"]: line for line in read_lines(self._store, self._key)}
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

    def finish(self, pixels: NDArray[np.uint8], task: Task, render: RenderInfo) -> Finished:
        """pixels: (H, W, 3). Raises `StoreError` if the store fails, `ValueError` if the record
        does not fit the format.
        """
        record = image_record(task, self.model, render)
        started = self.clock_s()
        data = encode_image(pixels, record, task.format, self.quality)
        encoded = self.clock_s()
        key = self.keys.image(task.name, record["spec"], task.format)
        written = self.store.put(
            key,
            data,
            overwrite=self.overwrite,
            content_type=content_type(key),
            metadata={"spec": record["spec"]},
        )
        put_s = self.clock_s() - encoded
        timings_s = {"render": render.render_s, "encode": encoded - started, "put": put_s}
        equal = False
        if written:
            self.meter.uploaded(put_s, len(data))
            finished = self.now().isoformat(timespec="seconds")
            path = self.keys.path(key)
            line = record_line(record, path, data, timings_s=timings_s, finished=finished)
        else:
            line, equal = self.record_of(key, record["spec"], task.index)
        self.records.add(line)
        return Finished(line, reused=not written, equal=equal)

    def record_of(self, key: str, spec: str, index: int) -> tuple[Record, bool]:
        """The line of an image in the store (see `record_in_store`), and whether it was made as
        another image of the job.
        """
        line = record_in_store(self.store, self.keys, key, spec)
        return line | {"index": index}, line["index"] != index


def record_in_store(store: Store, keys: JobKeys, key: str, spec: str) -> Record:
    """The line of an image in the store, read off the image itself; it must be of this spec.

    Its index is the one that it was made as: of several equal images of a job the first one's.
    Raises `ForeignImageError` if it is of another spec, `NotFoundError` and `StoreError`.
    """
    data = store.get(key, limit_bytes=MAX_RENDERED_BYTES)
    try:
        line = record_from_image(data, keys.path(key))
    except ValueError as error:
        raise _foreign(store, key, str(error)) from error
    if line.get("spec") != spec:
        raise _foreign(store, key, "it was made from other parameters")
    return line


def _foreign(store: Store, key: str, flaw: str) -> ForeignImageError:
    return ForeignImageError(
        f"{store.url(key)} is in the way of this job's image: {flaw}; "
        "move it away, or render anew with --force"
    )
