"""Images that are in the store already: whether they are whole, and what their records say.

A record says how many bytes an image has, and which. Without one the image itself is the truth,
once it was decoded to its last pixel. What is damaged is rendered again, and replaced.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from dataclasses import dataclass
from typing import Protocol

from jobs.errors import DamagedError, ForeignImageError, NotFoundError
from jobs.folder.layout import JobFolder
from jobs.folder.records import Record, flaw_of_record
from jobs.limits import MAX_RENDERED_BYTES
from jobs.pictures.rules import PictureError, opened
from jobs.storage import ObjectInfo, Store
from jobs.task import Task
from worker.output.record import record_from_image

log = logging.getLogger(__name__)

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


class ImageRecords(Protocol):
    """Takes records, and tells which one an image has already."""

    def add(self, record: Record) -> None: ...
    def line(self, index: int) -> Record | None: ...


@dataclass(frozen=True)
class Found:
    """A whole image. line: its record, where it has none yet. equal: it was made as another image
    of the job, with the same name and parameters.
    """

    line: Record | None = None
    equal: bool = False


class StoredImages:
    """Looks for images before they are rendered; threads may share it."""

    def __init__(self, folder: JobFolder, records: ImageRecords) -> None:
        self._folder = folder
        self._records = records
        self._damage: dict[int, str] = {}
        self._lock = threading.Lock()

    def find(self, task: Task, spec: str) -> Found | None:
        """The task's image, if it is there and whole; one that is damaged stays until it can be
        replaced. spec: the task's digest, 64 hex digits.

        Raises `ForeignImageError` if something else is in its place, `StoreError`.
        """
        info = self._folder.head(self._folder.keys.image(task.name, spec, task.format))
        if info is None:
            return None
        line = self._records.line(task.index)
        try:
            if line is not None and _is_of(line, self._folder.keys.path(info.key)):
                self._compare(info, line)
                return Found()
            line = record_in_store(self._folder, info.key, spec)
        except ForeignImageError:
            raise
        except (DamagedError, NotFoundError) as error:
            log.warning("%s; it is rendered again", error)
            return None
        return Found(line | {"index": task.index}, line["index"] != task.index)

    def damage(self, index: int) -> str | None:
        """The digest of the bytes that `find` found in an image's place against its record."""
        with self._lock:
            return self._damage.get(index)

    def _compare(self, info: ObjectInfo, line: Record) -> None:
        """Compares an object with its record, by what the store tells without reading it: its size,
        and where the store notes what was put (`S3Store` does), its sha256. Only what does not fit
        is read. Raises `DamagedError`, `NotFoundError` and `StoreError`.
        """
        sha256 = line["sha256"]
        if info.size_bytes == line["bytes"] and info.metadata.get("sha256", sha256) == sha256:
            return
        data = self._folder.get(info.key, limit_bytes=MAX_RENDERED_BYTES)
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            with self._lock:
                self._damage[line["index"]] = found
            raise DamagedError(f"{self._folder.url_of(info.key)} is not what its record says")


def _is_of(line: Record, path: str) -> bool:
    """True if a record is of the image at this path, and says what its bytes are."""
    return line["path"] == path and "sha256" in line and "bytes" in line


def record_in_store(folder: JobFolder, key: str, spec: str, *, damage: str | None = None) -> Record:
    """The line of an image in the store, read off the image itself; it must be of this spec.

    Its index is the one that it was made as: of several equal images of a job the first one's.
    damage: the digest of an image that is known to be damaged.
    Raises `DamagedError` if it is, or cannot be decoded; `ForeignImageError`, which is one, if it
    is whole, but of another spec; `NotFoundError` and `StoreError`.
    """
    data = folder.get(key, limit_bytes=MAX_RENDERED_BYTES)
    try:
        size = _size_when_whole(data)
    except PictureError as error:
        raise DamagedError(f"{folder.url_of(key)} {error}") from error
    try:
        line = record_from_image(data, folder.keys.path(key))
    except ValueError as error:
        raise _foreign(folder.store, key, str(error)) from error
    if line["sha256"] == damage:
        raise DamagedError(f"{folder.url_of(key)} is not what its record says")
    flaw = flaw_of_record(line)
    if flaw is not None:
        raise _foreign(folder.store, key, f"of its record, {flaw}")
    if line.get("spec") != spec:
        raise _foreign(folder.store, key, "it was made from other parameters")
    if size != (line.get("width"), line.get("height")):
        raise _foreign(folder.store, key, f"it has {size[0]}×{size[1]} pixels")
    return line


def _size_when_whole(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels of an image file of which nothing is missing, nor changed where
    its format can tell. Raises `PictureError`.
    """
    with opened(data) as image:
        is_png = image.format == "PNG"
        if is_png:
            image.verify()  # the checksums of all chunks
    if is_png and not data.endswith(_PNG_END):
        raise PictureError("is cut")
    with opened(data) as image:
        image.load()
        return image.size


def _foreign(store: Store, key: str, flaw: str) -> ForeignImageError:
    return ForeignImageError(
        f"{store.url(key)} is in the way of this job's image: {flaw}; "
        "move it away, or render anew with --force"
    )
