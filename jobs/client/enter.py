"""Submitting a job: its folder first, then the ledger, then messages.

Whatever dies in between, submitting the same manifest again continues: the folder has the same
plan, the ledger knows the job by its id, and messages are only ever sent for what is not done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from jobs.dataset import has_dataset
from jobs.errors import DamagedError, InputError, NotFoundError
from jobs.folder.job_file import PRIORITIES, JobFile
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.prepare import prepare
from jobs.folder.records import read_records
from jobs.formatting import counted
from jobs.ledger.base import Ledger
from jobs.ledger.quotas import check_quota, quota_of
from jobs.ledger.types import JobState, NewJob, Place, check_same
from jobs.manifest.manifest import Manifest
from jobs.plan.shards import ShardTable
from jobs.queue.messages import ShardQueue
from jobs.queue.publish import LEAST_WINDOW, publish
from jobs.storage import Store
from jobs.storage.addresses import canonical_address, same_place
from jobs.storage.base import is_segment
from jobs.task import Reproducible


@dataclass(frozen=True)
class Submitted:
    """A job in the ledger. new: False if it was there already. state: what it is in now. gone:
    images that counted as done, but are in the store no more; workers look at them again.
    lacks_dataset: the job was done before a data set was asked for, and workers write none then.
    """

    job: str
    url: str
    images: int
    done: int
    new: bool
    state: JobState = JobState.ACTIVE
    failed: int = 0
    gone: int = 0
    lacks_dataset: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "job": self.job,
            "folder": self.url,
            "images": self.images,
            "done": self.done,
            "new": self.new,
            "state": self.state,
            "failed": self.failed,
            "gone": self.gone,
        }


def submit(
    manifest: Manifest,
    store: Store,
    ledger: Ledger,
    queue: ShardQueue,
    *,
    address: str,
    job: str | None = None,
    priority: int | None = None,
    webhook: str | None = None,
    reproducible: Reproducible = JobFile.reproducible,
    reuse: bool = True,
    status: Callable[[str], AbstractContextManager[object]],
) -> Submitted:
    """Enters a job for the workers of its model, or continues it.

    address: of the store, as workers are to open it. job: names the folder; by default the name
    derived from the manifest's content. priority: None keeps that of a job that is there.
    reproducible: for a manifest that says nothing of it. reuse: take pictures that earlier jobs of
    the store made.
    status: shows what takes its time.
    Raises `InputError`, `JobConflictError`, `StoreError` and `LedgerError`.
    """
    if job is not None and ("/" in job or not is_segment(job)):
        raise InputError(f"{job!r} is not a folder name")
    if priority is not None and priority not in PRIORITIES:
        raise InputError(f"priority {priority} is not within {PRIORITIES[0]} to {PRIORITIES[-1]}")
    ledger.ping()  # before anything is written
    store.check_writable()
    with status("naming the job"):
        keys = JobKeys(job if job is not None else manifest.job_id())
        address = agreed_address(ledger, keys, manifest.digest, address)
        _check_quota(ledger, JobFolder(store, keys), manifest.total)
        if priority is None:
            with contextlib.suppress(NotFoundError):
                priority = ledger.status(keys.job_id).priority
    with status("writing the plan"):
        described, shards = prepare(
            manifest,
            JobFolder(store, keys),
            priority=priority,
            webhook=webhook,
            reproducible=reproducible,
            reuse=reuse,
        )
    return enter(
        described, shards, JobFolder(store, keys), ledger, queue, address=address, status=status
    )


def enter(
    described: JobFile,
    shards: ShardTable,
    folder: JobFolder,
    ledger: Ledger,
    queue: ShardQueue,
    *,
    address: str,
    status: Callable[[str], AbstractContextManager[object]],
) -> Submitted:
    """A job whose folder is complete into the ledger, and its first messages into the queue. The
    folder is the truth: images that it holds are done, and what is done but not there runs again.

    address: as `agreed_address` has it. Raises like `submit`.
    """
    with status("looking at what is there"):
        # In this order: what was done before the store was looked at has to be there.
        to_do = _to_do(ledger, folder.keys.job_id, described.images)
        present = rendered_before(folder, described.images)
    _check_budget(described, ledger, folder, sum(present))
    job = _new_job(described, shards, folder, address, ledger.user)
    with status("entering the job"):
        new = ledger.create(
            job,
            done=(index for index, there in enumerate(present) if there),
        )
        gone = 0
        if to_do is not None and not new:
            lacking = (index for index, there in enumerate(present) if not there)
            gone = ledger.reopen(
                folder.keys.job_id, (index for index in lacking if index not in to_do)
            )
        # A few at once, so that a worker can begin; the reconciler fills the window.
        for part in ledger.parts(ledger.status(job.job_id)):
            publish(ledger, queue, part, LEAST_WINDOW)
    now = ledger.status(folder.keys.job_id)
    return Submitted(
        job=folder.keys.job_id,
        url=folder.url,
        images=described.images,
        done=now.done,
        new=new,
        state=now.state,
        failed=now.failed,
        gone=gone,
        lacks_dataset=_lacks_dataset(described, folder, now.state),
    )


def _lacks_dataset(described: JobFile, folder: JobFolder, state: JobState) -> bool:
    return (
        state is JobState.DONE
        and described.dataset is not None
        and not has_dataset(folder, images=described.images)
    )


def _check_quota(ledger: Ledger, folder: JobFolder, images: int) -> None:
    """Raises `QuotaError` before anything is written of a new job that the ledger would refuse."""
    most = quota_of(ledger.quotas(), ledger.user)
    if most is None or folder.head(folder.keys.job) is not None:
        return
    others = (job for job in ledger.jobs() if job.job_id != folder.keys.job_id)
    to_do = sum(job.to_do for job in others if job.submitter == ledger.user)
    check_quota(ledger.user, most, to_do, images)


def _check_budget(described: JobFile, ledger: Ledger, folder: JobFolder, done: int) -> None:
    """Raises `InputError` if the job's budget is used up, and there is more to do."""
    if described.budget is None or done >= described.images:
        return
    worker_s = 0.0
    with contextlib.suppress(NotFoundError):
        known = ledger.status(folder.keys.job_id)
        if known.settled:
            return
        worker_s = known.worker_s
    spent = described.budget.spent(worker_s=worker_s, images=done)
    if spent is not None:
        of = counted(described.images, "image")
        raise InputError(
            f"the budget of {spent} is used up: {done:,} of {of} are done, in "
            f"{worker_s / 3600:.2f} hours of workers; give the job a larger one"
        )


def _new_job(
    described: JobFile, shards: ShardTable, folder: JobFolder, address: str, submitter: str
) -> NewJob:
    try:
        return NewJob(
            job_id=folder.keys.job_id,
            name=described.name,
            plan=described.plan,
            store=address,
            model=described.model,
            shard_ends=shards.ends,
            evaluations=shards.evaluations,
            priority=described.priority,
            webhook=described.webhook,
            quality=described.quality,
            models=shards.of_models(described.models),
            budget=described.budget,
            submitter=submitter,
        )
    except ValueError as error:  # what it says of models is not what the plan has
        url = folder.url_of(folder.keys.job)
        raise DamagedError(f"{url} is damaged: {error}; submit the job's manifest again") from None


def agreed_address(ledger: Ledger, keys: JobKeys, plan_digest: str, address: str) -> str:
    """The store's address as the ledger has it, if it knows the job: the same place may be written
    in several ways. Asked before anything is written, so that a folder that the ledger would refuse
    stays as it is.

    Raises `JobConflictError` if the ledger's job has another plan, or is in another place.
    """
    address = canonical_address(address)
    try:
        known = ledger.status(keys.job_id)
    except NotFoundError:
        return address
    if same_place(known.store, address):
        address = known.store
    check_same(keys.job_id, Place(known.plan, known.store), Place(plan_digest, address))
    return address


def _to_do(ledger: Ledger, job_id: str, images: int) -> set[int] | None:
    """Images that the ledger wants rendered; None if it does not know the job."""
    try:
        return set(ledger.pending(job_id, 0, images))
    except NotFoundError:
        return None


def rendered_before(folder: JobFolder, images: int) -> bytearray:
    """For each image 1 if it has a record and is in the store, of the size recorded, else 0.

    Those without a record are not among them: the worker that looks at them mends it.
    One list of the images and the records are read, however many there are. Raises `StoreError`.
    """
    there = {
        hash((folder.keys.path(i.key), i.size_bytes))
        for i in folder.list(folder.keys.images_prefix)
    }
    rendered = bytearray(images)
    for record in read_records(folder, images=images):
        rendered[record["index"]] = hash((record["path"], record.get("bytes"))) in there
    return rendered
