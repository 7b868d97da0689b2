"""A job with images and records, of which no model has drawn anything."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.record_writer import ShardRecords
from jobs.folder.records import Record, read_records
from jobs.storage import Store
from jobs.task import Task
from tests.worker.samples import MODEL, RENDER, a_task, pixels
from worker.observer import Observer
from worker.output.finish import Finisher

A_SHARD = 8
MANY = 2**63 + 11  # a seed that no signed number holds


def a_job(store: Store, images: int, name: str = "job", *, start: int = 0) -> JobFolder:
    """Images of a job from an index on."""
    folder = JobFolder(store, JobKeys(name))
    for index in range(start, images):
        with ShardRecords(folder, index // A_SHARD) as records:
            finisher = Finisher(folder, MODEL, records, Observer())
            finisher.finish(pixels(index), task(index), RENDER)
    return folder


def task(index: int) -> Task:
    return a_task(
        index,
        width=64,
        height=64,
        seed=MANY if index == 3 else index,
        prompt=f"a ring, “{index}”",
        guidance=7.0 if index % 2 else 7.5,
        meta=(("sku", f"{index:03d}"),) if index != 5 else (),
    )


def records(folder: JobFolder) -> list[Record]:
    return list(read_records(folder))


def file_digests(root: Path) -> dict[str, str]:
    """Path -> sha256 of each file."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def pictures(folder: JobFolder) -> Iterator[tuple[int, str]]:
    """Index and sha256 of each image that is in the store."""
    for record in records(folder):
        data = folder.get(folder.keys(record["path"]), limit_bytes=2**20)
        yield record["index"], hashlib.sha256(data).hexdigest()
