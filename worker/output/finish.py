"""The last stage of an image: encode it, put it in the store, then its record.

The image comes first. If the process dies in between, the record is rebuilt from the image; the
other way round it would speak of an image that is not there.
"""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from jobs.errors import DamagedError, ForeignImageError, NotFoundError
from jobs.folder.layout import JobFolder
from jobs.folder.records import Record
from jobs.task import DEFAULT_QUALITY, Task
from worker.observer import Observer
from worker.output.encoders import Encoder
from worker.output.record import ModelInfo, RenderInfo, image_record, names_of_inputs, record_line
from worker.output.stored import record_in_store
from worker.output.thumbnails import Thumbnails

log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Finisher:
    """Finishes the images of a job, or of a shard of it; threads may share it.

    overwrite: replace what is in the store (`--force`) instead of keeping it.
    encoder, thumbnails: make the files. input_names: see `names_of_inputs`.
    clock_s, now: seconds for timings, and the time of day in UTC for records.
    """

    folder: JobFolder
    model: ModelInfo
    records: Records
    observer: Observer
    quality: int = DEFAULT_QUALITY
    overwrite: bool = False
    encoder: Encoder = field(default_factory=Encoder)
    input_names: Mapping[str, str] = field(default_factory=dict)
    thumbnails: Thumbnails | None = None
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
        data = self.encoder.picture(pixels, record, task.format, self.quality)
        encoded = self.clock_s()
        key = self.folder.keys.image(task.name, record["spec"], task.format)
        stored = self._put(key, data, record["spec"], damage)
        put_s = self.clock_s() - encoded
        timings_s = {"render": render.render_s, "encode": encoded - started, "put": put_s}
        equal = False
        if stored is None:
            self.observer.uploaded(put_s, len(data))
            finished = self.now().isoformat(timespec="seconds")
            path = self.folder.keys.path(key)
            line = record_line(record, path, data, timings_s=timings_s, finished=finished)
            line |= names_of_inputs(task, self.input_names)
            if task.format != "png":
                line["quality"] = self.quality
            if self.thumbnails is not None:
                line |= self.thumbnails.put(pixels, key)
        else:
            line, equal = stored | {"index": task.index}, stored["index"] != task.index
        self.records.add(line)
        return Finished(line, reused=stored is not None, equal=equal)

    def _put(self, key: str, data: bytes, spec: str, damage: str | None) -> Record | None:
        """Writes an image; if another one is there and whole, that one's record instead."""

        def put(overwrite: bool) -> bool:
            return self.folder.put(key, data, overwrite=overwrite)

        if put(self.overwrite):
            return None
        try:
            return record_in_store(self.folder, key, spec, damage=damage)
        except ForeignImageError:
            raise
        except (DamagedError, NotFoundError) as error:
            # Looked at again only now, and not before it was rendered: others may have replaced it.
            log.warning("%s; it is replaced", error)
        put(True)
        return None
