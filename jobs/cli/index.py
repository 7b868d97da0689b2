"""The subcommand that makes the index of pictures again."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import click

from jobs.cli.options import endpoint_option, json_option
from jobs.client.opening import open_store_at, settings_with
from jobs.errors import InputError, NotFoundError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.formatting import counted
from jobs.reuse.index import INDEX_PREFIX, index_key, write_index
from jobs.storage import Store
from jobs.storage.base import is_segment
from jobs.terminal.console import Terminal


@click.command()
@click.argument("jobs", metavar="[JOB...]", nargs=-1)
@click.option(
    "--store",
    metavar="URL",
    help="Where the jobs' folders are. [default: SDBATCH_STORE, else that of a running "
    "`sdbatch local`, else out]",
)
@endpoint_option
@json_option
@click.pass_obj
def index(
    terminal: Terminal, jobs: tuple[str, ...], store: str | None, endpoint: str | None
) -> None:
    """Note which pictures the jobs of a store have made, so that later jobs take them instead of
    rendering them again. Workers do so at a job's end; this is for jobs of before, and after
    folders were moved or deleted. Without JOB all are looked at.

    \b
    Example:
      sdbatch index --store s3://bucket/jobs
    """
    settings = settings_with(None)
    address = store or settings.job_store
    opened = open_store_at(settings, address, endpoint, given=store is not None)
    named = [_existing(opened, job) for job in jobs]
    pictures: dict[str, int] = {}
    with terminal.counting("indexing", len(named) or None) as tick:
        for keys in named or _all_jobs(opened):
            pictures[keys.job_id] = write_index(JobFolder(opened, keys))
            tick(len(pictures))
    removed = [] if named else list(_remove_others(opened, pictures))
    if terminal.json:
        terminal.document({"jobs": pictures, "removed": removed})
        return
    terminal.say(
        f"{counted(sum(pictures.values()), 'picture')} of {counted(len(pictures), 'job')} indexed"
    )
    if removed:
        terminal.say(f"{counted(len(removed), 'index', 'indexes')} of jobs that are gone removed")


def _existing(store: Store, job: str) -> JobKeys:
    if "/" in job or not is_segment(job):
        raise InputError(f"{job!r} is not a folder name")
    keys = JobKeys(job)
    if store.head(keys.job) is None:
        raise NotFoundError(f"{store.url(keys.job)} is missing: there is no such job")
    return keys


def _all_jobs(store: Store) -> Iterator[JobKeys]:
    """Every folder of the store that is a job's."""
    for info in store.list(""):
        job, _, path = info.key.partition("/")
        if path == "job.json":
            yield JobKeys(job)


def _remove_others(store: Store, there: Collection[str]) -> Iterator[str]:
    """Removes indexes of jobs that are not there; their names."""
    found = [info.key.removeprefix(INDEX_PREFIX) for info in store.list(INDEX_PREFIX)]
    for job in found:
        if job not in there and store.head(JobKeys(job).job) is None:
            store.delete(index_key(job))
            yield job
