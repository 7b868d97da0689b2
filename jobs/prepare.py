"""What a job's folder holds before anything is rendered: plan, inputs, manifest."""

from __future__ import annotations

import hashlib

from jobs.errors import InputError
from jobs.job_file import JobFile, Reproducible, check_folder, write_job_file
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
    priority: int | None = None,
    webhook: str | None = None,
    reproducible: Reproducible = JobFile.reproducible,
    force: bool = False,
) -> tuple[JobFile, ShardTable]:
    """Writes what is not there yet; what the job is, and its shards.

    priority: None keeps that of a job that is there. reproducible: for a manifest that says nothing
    of it. force: images of another model or quality
    are to be replaced, so the job that they were of gives way, if its prompts are the same.
    Raises `JobConflictError` for a folder that holds another plan, which then stays as it is, and
    `InputError` for a picture that changed since the manifest was read.
    """
    known = None if force else check_folder(store, keys, manifest.digest)
    if priority is None:
        priority = JobFile.priority if known is None else known.priority
    shards = ShardTable(manifest.total)
    write_plan(store, keys, shards.watch(manifest.tasks()))  # first: it finds another job's folder
    for name, source in manifest.inputs.items():
        key = keys.input(name)
        if store.head(key) is None:
            store.put(key, _unchanged(name, source), content_type=content_type(key))
    job = JobFile(
        name=manifest.name,
        model=manifest.model,
        plan=manifest.digest,
        images=manifest.total,
        quality=manifest.output.quality,
        priority=priority,
        webhook=webhook,
        reproducible=manifest.reproducible or reproducible,
    )
    write_job_file(store, keys, job, force=force)
    store.put(
        keys.manifest,
        manifest.source,
        overwrite=True,
        content_type=content_type(keys.manifest),
    )
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
