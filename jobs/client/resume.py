"""From a job's folder back to the ledger: after a wiped or lost Redis, or with images gone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from jobs.client.enter import Submitted, agreed_address, enter
from jobs.errors import InputError, NotFoundError
from jobs.folder.check import remove_damaged
from jobs.folder.job_file import read_job_file
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.plan import read_plan
from jobs.ledger.base import Ledger
from jobs.plan.shards import ShardTable
from jobs.queue.messages import ShardQueue
from jobs.storage import Store
from jobs.storage.base import is_segment


def resume(
    job: str,
    store: Store,
    ledger: Ledger,
    queue: ShardQueue,
    *,
    address: str,
    check: bool = False,
    status: Callable[[str], AbstractContextManager[object]],
) -> Submitted:
    """Enters a job from its folder: images that are there count as done, the others run, also those
    that the ledger takes for done.

    A job that the ledger still knows goes on. job: the folder's name, or its unique beginning.
    address: of the store, as workers are to open it. check: delete images that are not what their
    records say first, which takes reading them all. status: shows what takes its time.
    Raises `NotFoundError`, `InputError`, `JobConflictError`, `StoreError` and `LedgerError`.
    """
    ledger.ping()
    keys = _find(store, job, status)
    described = read_job_file(JobFolder(store, keys))
    address = agreed_address(ledger, keys, described.plan, address)
    if check:
        with status("comparing images with their records"):
            remove_damaged(JobFolder(store, keys), images=described.images)
    with status("reading the plan"):
        shards = ShardTable.of(read_plan(JobFolder(store, keys)), described.images)
    return enter(
        described, shards, JobFolder(store, keys), ledger, queue, address=address, status=status
    )


def _find(
    store: Store, job: str, status: Callable[[str], AbstractContextManager[object]]
) -> JobKeys:
    if "/" in job or not is_segment(job):
        raise InputError(f"{job!r} is not a folder name")
    keys = JobKeys(job)
    if store.head(keys.job) is not None:
        return keys
    with status("looking for the job"):
        found = {
            info.key.partition("/")[0]
            for info in store.list(job)
            if info.key == JobKeys(info.key.partition("/")[0]).job
        }
    if len(found) > 1:
        names = ", ".join(sorted(found)[:5])
        raise InputError(f"{job!r} may be any of {len(found)} jobs: {names}")
    if not found:
        raise NotFoundError(f"{store.url(job)} is no job, and no job there begins so")
    return JobKeys(found.pop())
