"""Open what a command line names: settings, a manifest, a store, a ledger, a job in it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from jobs.errors import InputError, NotFoundError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.ledger import Ledger, open_ledger
from jobs.ledger.types import JobStatus, check_readable
from jobs.settings import Settings
from jobs.storage import LocalStore, Store, open_store
from jobs.storage.base import is_segment


def settings_with(redis: str | None) -> Settings:
    """The settings, with the server of --redis if it was given. Raises `InputError`."""
    return Settings.from_env(os.environ | ({} if redis is None else {"SDBATCH_REDIS": redis}))


def ledger_at(redis: str | None) -> Ledger:
    return open_ledger(settings_with(redis).redis)


def open_store_at(settings: Settings, address: str, endpoint: str | None, *, given: bool) -> Store:
    """The store that a command works with. given: a person named it. Raises `StoreError`."""
    if endpoint is not None:
        return open_store(address, endpoint=endpoint)
    return open_store(address, access=settings.access(address, given=given))


def find_job(ledger: Ledger, name: str, *, unread: bool = False) -> JobStatus:
    """The job of this name, or the only one whose name begins so.

    unread: also one whose entry cannot be read.
    Raises `NotFoundError` if there is none, `InputError` if there are several or the name is empty,
    `DamagedLedgerError`.
    """
    found = _find_job(ledger, name)
    return found if unread else check_readable(found)


def _find_job(ledger: Ledger, name: str) -> JobStatus:
    if not name.strip():  # an unset variable in a script must not mean whatever job there is
        raise InputError("the job's name is empty; `sdbatch jobs` lists them")
    found = [job for job in ledger.jobs() if job.job_id.startswith(name)]
    for job in found:
        if job.job_id == name:
            return job
    if not found:
        raise NotFoundError(f"no job is called {name!r} or begins so; `sdbatch jobs` lists them")
    if len(found) > 1:
        names = ", ".join(job.job_id for job in found[:5])
        raise InputError(f"{name!r} may be any of {len(found)} jobs: {names}")
    return found[0]


def open_job(job: str, store: str | None, endpoint: str | None, redis: str | None) -> JobFolder:
    """The job's folder: a path of this machine, a name in a store, or one that the ledger knows.

    Raises `InputError`, `NotFoundError`, `StoreError` and `LedgerError`.
    """
    given = store is not None
    if store is None:
        path = Path(job)
        if (path / "job.json").is_file():
            path = path.absolute()
            return JobFolder(LocalStore(path.parent), JobKeys(path.name))
        if "/" in job:
            raise InputError(f"{shlex.quote(job)} is no folder of a job: it has no job.json")
        found = find_job(ledger_at(redis), job)
        job, store = found.job_id, found.store
    if "/" in job or not is_segment(job):
        raise InputError(f"{job!r} is not a folder name")
    opened = open_store_at(settings_with(redis), store, endpoint, given=given)
    return JobFolder(opened, JobKeys(job))


def store_address(store: Store, given: str) -> str:
    """Address of the store as a worker opens it: a worker runs in another folder."""
    return str(store.root.absolute()) if isinstance(store, LocalStore) else given
