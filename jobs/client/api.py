"""Jobs from Python: render here, or have workers do it. See `jobs.client`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from jobs.client.job import Job
from jobs.client.manifests import given, read_manifest
from jobs.client.opening import (
    ledger_at,
    open_job,
    open_store_at,
    settings_with,
    store_address,
)
from jobs.errors import InputError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.manifest.manifest import Manifest
from jobs.settings import Settings
from jobs.storage import open_store
from jobs.terminal.console import Terminal

ManifestLike = Mapping[str, Any] | str | os.PathLike[str]
"""A manifest as a script has it: a mapping, a text of several lines (YAML), or a path."""


def run(
    manifest: ManifestLike,
    *,
    store: str | os.PathLike[str] | None = None,
    job: str | None = None,
    model: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    force: bool = False,
    reuse: bool = True,
    allow_outside: bool = False,
) -> Job:
    """Render a manifest in this process, as `sdbatch run` does: what is there already is kept.

    manifest: paths in a mapping or a text are taken from the current folder. store, job, model,
    device, dtype, force: as the options of that command; None leaves them to manifest and settings.
    reuse: take pictures that earlier jobs of the store made. allow_outside: let a manifest name
    files outside its folder.
    Raises the errors of `jobs.errors`: `ManifestError` with all problems at once, `InputError`
    where the renderer is not installed, `ModelError`, `StoreError`. Images that fail are in the
    job's `failures`.
    """
    path, source = given(manifest)
    settings, terminal = Settings.from_env(os.environ), Terminal(json=False)
    read: list[Manifest] = []

    def read_for(name: str | None) -> Manifest:
        read.append(
            read_manifest(
                *(terminal, path),
                source=source,
                allow_outside=allow_outside,
                model=name,
                all_listed=True,
            )
        )
        return read[0]

    place = None if store is None else os.fspath(store)
    options = {"store": place, "job": job, "model": model, "device": device, "dtype": dtype}
    summary = _renderer()(read_for, settings, terminal, **options, force=force, no_reuse=not reuse)
    address = place or read[0].output.store or settings.store
    return Job(JobFolder(open_store(address), JobKeys(summary.job)))


def submit(
    manifest: ManifestLike,
    *,
    store: str | os.PathLike[str] | None = None,
    redis: str | None = None,
    job: str | None = None,
    priority: int | None = None,
    reuse: bool = True,
    allow_outside: bool = False,
) -> Job:
    """Queue a manifest for workers, as `sdbatch submit` does; submitting it again continues it.

    store, job, priority: as the options of that command. redis: the server of queue and ledger;
    None leaves it to the settings. manifest, reuse, allow_outside: see `run`. Raises the errors of
    `jobs.errors`, such as `ManifestError`, `StoreError` and `LedgerError`.
    """
    from jobs.client.enter import submit as enter
    from jobs.queue.messages import CeleryQueue

    path, source = given(manifest)
    terminal, settings = Terminal(json=False), settings_with(redis)
    read = read_manifest(terminal, path, source=source, allow_outside=allow_outside)
    asked = read.output.store if store is None else os.fspath(store)
    address = asked or settings.job_store
    opened = open_store_at(settings, address, None, given=bool(asked))
    ledger = ledger_at(redis)
    submitted = enter(
        read,
        opened,
        ledger,
        CeleryQueue(settings.redis),
        address=store_address(opened, address),
        job=job,
        priority=priority,
        webhook=read.output.webhook,
        reproducible=settings.reproducible,
        reuse=reuse,
        status=terminal.status,
    )
    return Job(JobFolder(opened, JobKeys(submitted.job)), ledger)


def find(
    job: str | os.PathLike[str],
    *,
    store: str | os.PathLike[str] | None = None,
    redis: str | None = None,
) -> Job:
    """A job of before: a path of its folder, its name in a store, or a name that the ledger knows,
    or a beginning of it.

    Raises `NotFoundError`, `InputError` if several begin so, `StoreError` and `LedgerError`.
    """
    place, name = None if store is None else os.fspath(store), os.fspath(job)
    in_ledger = place is None and not (Path(name) / "job.json").is_file()
    folder = open_job(name, place, None, redis)
    return Job(folder, ledger_at(redis) if in_ledger else None)


def _renderer() -> Any:
    for found in entry_points(group="sdbatch.api", name="run"):
        return found.load()
    raise InputError("rendering is not installed with this copy of sdbatch: pip install sdbatch")
