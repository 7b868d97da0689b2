"""Submitting a job: its folder first, then the ledger, then messages.

Whatever dies in between, submitting the same manifest again continues: the folder has the same
plan, the ledger knows the job by its id, and messages are only ever sent for what is not done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from jobs.errors import InputError
from jobs.job_file import PRIORITIES, JobFile
from jobs.ledger.base import Ledger, NewJob
from jobs.manifest import Manifest
from jobs.prepare import prepare
from jobs.publish import LEAST_WINDOW, publish
from jobs.queue import ShardQueue
from jobs.records import read_records
from jobs.shards import ShardTable
from jobs.storage import JobKeys, Store
from jobs.storage.base import is_segment


@dataclass(frozen=True)
class Submitted:
    """A job in the ledger. new: False if it was there already and goes on."""

    job: str
    url: str
    images: int
    done: int
    new: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "job": self.job,
            "folder": self.url,
            "images": self.images,
            "done": self.done,
            "new": self.new,
        }


def submit(
    manifest: Manifest,
    store: Store,
    ledger: Ledger,
    queue: ShardQueue,
    *,
    address: str,
    job: str | None = None,
    priority: int = NewJob.priority,
    webhook: str | None = None,
    status: Callable[[str], AbstractContextManager[object]],
) -> Submitted:
    """Enters a job for the workers of its model, or continues it.

    address: of the store, as workers are to open it. job: names the folder; by default the name
    derived from the manifest's content. status: shows what takes its time.
    Raises `InputError`, `JobConflictError`, `StoreError` and `LedgerError`.
    """
    if job is not None and ("/" in job or not is_segment(job)):
        raise InputError(f"{job!r} is not a folder name")
    if priority not in PRIORITIES:
        raise InputError(f"priority {priority} is not within {PRIORITIES[0]} to {PRIORITIES[-1]}")
    ledger.ping()  # before anything is written
    store.check_writable()
    with status("naming the job"):
        keys = JobKeys(job if job is not None else manifest.job_id())
    with status("writing the plan"):
        described, shards = prepare(manifest, store, keys, priority=priority, webhook=webhook)
    return enter(described, shards, store, keys, ledger, queue, address=address, status=status)


def enter(
    described: JobFile,
    shards: ShardTable,
    store: Store,
    keys: JobKeys,
    ledger: Ledger,
    queue: ShardQueue,
    *,
    address: str,
    status: Callable[[str], AbstractContextManager[object]],
) -> Submitted:
    """A job whose folder is complete into the ledger, and its first messages into the queue.

    Raises like `submit`.
    """
    with status("entering the job"):
        new = ledger.create(
            NewJob(
                job_id=keys.job_id,
                name=described.name,
                plan=described.plan,
                store=address,
                model=described.model,
                shard_ends=shards.ends,
                evaluations=shards.evaluations,
                priority=described.priority,
                webhook=described.webhook,
                quality=described.quality,
            ),
            done=rendered_before(store, keys),
        )
        # A few at once, so that a worker can begin; the reconciler fills the window.
        publish(ledger, queue, ledger.status(keys.job_id), LEAST_WINDOW)
    return Submitted(
        job=keys.job_id,
        url=store.url(keys.prefix.rstrip("/")),
        images=described.images,
        done=ledger.status(keys.job_id).done,
        new=new,
    )


def rendered_before(store: Store, keys: JobKeys) -> Iterator[int]:
    """Images that have a record and are in the store, as after a run without a ledger.

    Those without a record are not among them: the worker that looks at them mends it.
    """
    present = {hash(keys.path(info.key)) for info in store.list(keys.images_prefix)}
    for record in read_records(store, keys):
        if hash(record["path"]) in present:
            yield record["index"]
