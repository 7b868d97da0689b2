"""What a job's folder holds before anything is rendered: plan, inputs, manifest."""

from __future__ import annotations

import hashlib
from pathlib import Path

from jobs.errors import InputError
from jobs.job_file import JobFile, write_job_file
from jobs.manifest import Manifest
from jobs.plan import write_plan
from jobs.shards import ShardTable
from jobs.storage import JobKeys, Store
from jobs.storage.keys import content_type


def prepare(
    manifest: Manifest,
    store: Store,
    keys: JobKeys,
    *,
    priority: int = JobFile.priority,
    webhook: str | None = None,
) -> tuple[JobFile, ShardTable]:
    """Writes what is not there yet; what the job is, and its shards.

    Raises `JobConflictError` for a folder that holds another plan, which then stays as it is, and
    `InputError` for a picture that changed since the manifest was read.
    """
    shards = ShardTable(manifest.total)
    write_plan(store, keys, shards.watch(manifest.tasks()))  # first: it finds another job's folder
    for name, path in manifest.inputs.items():
        key = keys.input(name)
        if store.head(key) is None:
            store.put(key, _unchanged(name, path), content_type=content_type(key))
    store.put(
        keys.manifest,
        manifest.source,
        overwrite=True,
        content_type=content_type(keys.manifest),
    )
    job = JobFile(
        name=manifest.name,
        model=manifest.model,
        plan=manifest.digest,
        images=manifest.total,
        quality=manifest.output.quality,
        priority=priority,
        webhook=webhook,
    )
    write_job_file(store, keys, job)
    return job, shards


def _unchanged(name: str, path: Path) -> bytes:
    """The input's bytes, which `name` gives the digest of since the manifest was read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not name.startswith(hashlib.sha256(data).hexdigest()):
        raise InputError(f"{path} changed while the job was being prepared; run it again")
    return data
