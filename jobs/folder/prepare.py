"""Preparation of a job's folder before anything is rendered: plan, inputs, manifest."""

from __future__ import annotations

import hashlib
import logging

from jobs.errors import DamagedError, InputError
from jobs.folder.input_names import write_input_names
from jobs.folder.job_file import JobFile, check_folder, write_job_file
from jobs.folder.layout import JobFolder
from jobs.folder.plan import write_plan
from jobs.folder.resolved_manifest import write_resolved
from jobs.limits import MAX_INPUT_BYTES
from jobs.manifest.manifest import Manifest
from jobs.manifest.sources import Source
from jobs.plan.shards import ShardTable
from jobs.storage import get_verified
from jobs.task import Reproducible, input_digest

log = logging.getLogger(__name__)


def prepare(
    manifest: Manifest,
    folder: JobFolder,
    *,
    priority: int | None = None,
    webhook: str | None = None,
    reproducible: Reproducible = JobFile.reproducible,
    force: bool = False,
    reuse: bool = True,
) -> tuple[JobFile, ShardTable]:
    """Writes the files of a job's folder that are missing or damaged, before its images.

    priority: None keeps that of a job that is there.
    reproducible: for a manifest that says nothing of it.
    reuse: whether pictures of earlier jobs may be taken.
    force: replaces a job of the same prompts whose images are of another model or quality.

    Returns the job's file and the table of its shards.
    Raises `JobConflictError` for a folder that holds another plan, which then stays as it is, and
    `InputError` for a picture that changed since the manifest was read.
    """
    known = None if force else check_folder(folder, manifest.digest)
    if priority is None:
        priority = JobFile.priority if known is None else known.priority
    # First: it finds another job's folder.
    parts = write_plan(folder, manifest.expansion.parts(), replace=known is not None)
    for name, source in manifest.inputs.items():
        _put_input(folder, name, source)
    write_input_names(folder, manifest.input_names)
    job = JobFile(
        name=manifest.name,
        model=manifest.model,
        plan=manifest.digest,
        images=manifest.total,
        quality=manifest.output.quality,
        priority=priority,
        webhook=webhook,
        reproducible=manifest.reproducible or reproducible,
        parts=tuple(parts),
        models=tuple(manifest.models) if len(manifest.models) > 1 else (),
        thumbnails=manifest.output.thumbnails,
        reuse=reuse,
        dataset=manifest.output.dataset,
        budget=manifest.budget,
    )
    write_job_file(folder, job, force=force)
    write_resolved(folder, manifest, job.reproducible)
    folder.put(folder.keys.manifest, manifest.source, overwrite=True)
    return job, manifest.expansion.shards


def _put_input(folder: JobFolder, name: str, source: Source) -> None:
    """Writes an input that is not there, or is there with other bytes than its name says."""
    key = folder.keys.input(name)
    there = folder.head(key) is not None
    if there:
        try:
            get_verified(folder.store, key, input_digest(name), limit_bytes=MAX_INPUT_BYTES)
        except DamagedError as error:
            log.warning("%s; it is written anew", error)
        else:
            return
    folder.put(key, _unchanged(name, source), overwrite=there)


def _unchanged(name: str, source: Source) -> bytes:
    """The input's bytes, which `name` gives the digest of since the manifest was read."""
    try:
        data = source.read(MAX_INPUT_BYTES)
    except ValueError as error:
        raise InputError(str(error)) from None
    if hashlib.sha256(data).hexdigest() != input_digest(name):
        raise InputError(f"{source} changed while the job was being prepared; run it again")
    return data
