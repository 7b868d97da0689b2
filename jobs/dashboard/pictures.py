"""Pictures of jobs for the page: what is said of each, its bytes, and a small one of it.

Only files that a record names are read, and only those within the job's own folder.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.dashboard.cache import BoundedCache
from jobs.dashboard.index import JobIndex, RecordIndex
from jobs.dashboard.thumbnails import MAX_THUMBNAIL_BYTES, media_type, thumbnail
from jobs.dashboard.views import View, short
from jobs.errors import DamagedError, NotFoundError
from jobs.folder.records import Record
from jobs.limits import MAX_RENDERED_BYTES

CACHE_BYTES = 64 * 2**20
"""Thumbnails that are kept in memory."""

MADE_AT_ONCE = 2
"""Pictures that are decoded at the same time: each may take some hundred megabytes."""

_FACTS = (
    "index",
    "seed",
    "width",
    "height",
    "sampler",
    "steps",
    "guidance",
    "strength",
    "finished",
)


@dataclass(frozen=True)
class Served:
    """A file as a browser gets it. tag: changes with its bytes."""

    data: bytes
    media_type: str
    tag: str


class Pictures:
    """Methods raise as those of `RecordIndex` do, and `DamagedError` for what is no picture."""

    def __init__(self, index: RecordIndex) -> None:
        self._index = index
        self._small: BoundedCache[tuple[str, float, int, str], Served] = BoundedCache(
            CACHE_BYTES, lambda served: len(served.data)
        )
        self._making = threading.Semaphore(MADE_AT_ONCE)

    def facts(self, job_id: str, indices: Sequence[int]) -> list[View]:
        """Facts of those of the images that are finished."""
        return [
            facts_of(record) for record in self._index.records(self._index.job(job_id), indices)
        ]

    def before(self, job_id: str, index: int, limit: int) -> tuple[list[View], int]:
        """See `RecordIndex.before`."""
        records, stop = self._index.before(self._index.job(job_id), index, limit)
        return [facts_of(record) for record in records], stop

    def picture(self, job_id: str, index: int) -> Served:
        """An image's own file."""
        job = self._index.job(job_id)
        return self._own(job, self._index.record(job, index))

    def thumbnail(self, job_id: str, index: int) -> Served:
        """A small picture of an image: the one that its worker stored, else one that is made
        here.
        """
        job = self._index.job(job_id)
        record = self._index.record(job, index)
        known = job_id, job.created_s, index, _tag(record)
        served = self._small.get(known)
        if served is None:
            served = self._stored(job, record) or self._made(job, record)
            self._small.put(known, served)
        return served

    def _own(self, job: JobIndex, record: Record) -> Served:
        key = job.folder.keys(record["path"])
        data = job.folder.get(key, limit_bytes=MAX_RENDERED_BYTES)
        return _served(data, job.folder.url_of(key), _tag(record))

    def _stored(self, job: JobIndex, record: Record) -> Served | None:
        path = record.get("thumbnail")  # within the job's folder: `read_lines` has seen to that
        if path is None:
            return None
        key = job.folder.keys(path)
        try:
            data = job.folder.get(key, limit_bytes=MAX_THUMBNAIL_BYTES)
            return _served(data, job.folder.url_of(key), f"{_tag(record)}-small")
        except (NotFoundError, DamagedError):
            return None

    def _made(self, job: JobIndex, record: Record) -> Served:
        with self._making:
            own = self._own(job, record)
            data = thumbnail(own.data, job.folder.url_of(job.folder.keys(record["path"])))
        return Served(data, "image/webp", f"{own.tag}-made")


def facts_of(record: Record) -> View:
    """Facts that the page shows of an image. The record is another program's text: values that are
    not plain are left out.
    """
    facts: View = {
        name: record[name] for name in _FACTS if isinstance(record.get(name), (int, float, str))
    }
    facts = {
        name: short(value) if isinstance(value, str) else value for name, value in facts.items()
    }
    for name in ("prompt", "negative"):
        if isinstance(record.get(name), str):
            facts[name] = short(record[name])
    model = record.get("model")
    if isinstance(model, dict) and isinstance(model.get("name"), str):
        facts["model"] = short(model["name"])
    if "seed" in facts:
        facts["seed"] = str(facts["seed"])  # may be larger than a number of JavaScript's
    return facts


def _served(data: bytes, place: str, tag: str) -> Served:
    kind = media_type(data)
    if kind is None:
        raise DamagedError(f"{place} is no PNG, JPEG or WebP picture")
    return Served(data, kind, tag)


def _tag(record: Record) -> str:
    digest = record.get("sha256")
    return digest if isinstance(digest, str) else str(record["path"])
