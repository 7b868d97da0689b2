"""What a job's folder holds before anything is rendered: plan, inputs, manifest."""

from __future__ import annotations

import hashlib

from jobs.errors import InputError
from jobs.job_file import JobFile, write_job_file
from jobs.limits import MAX_IMAGE_BYTES
from jobs.manifest import Manifest
from jobs.plan import write_plan
from jobs.shards import ShardTable
from jobs.sources import Source
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
    for name, source in manifest.inputs.items():
        key = keys.input(name)
        if store.head(key) is None:
            store.put(key, _unchanged(name, source), content_type=content_type(key))
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


def _unchanged(name: str, source: Source) -> bytes:
    """The input's bytes, which `name` gives the digest of since the manifest was read."""
    try:
        data = source.read(MAX_IMAGE_BYTES)
    except ValueError as error:
        raise InputError(str(error)) from None
    if not name.startswith(hashlib.sha256(data).hexdigest()):
        raise InputError(f"{source} changed while the job was being prepared; run it again")
    return data
