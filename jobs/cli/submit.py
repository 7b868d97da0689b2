"""Subcommands from submitting a job to having its pictures: submit, watch, collect."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from jobs.cli.job_text import job_code, job_document, job_line, say_submitted
from jobs.cli.options import (
    allow_outside_option,
    endpoint_option,
    job_argument,
    json_option,
    manifest_argument,
    no_reuse_option,
    redis_option,
)
from jobs.client.earlier_jobs import earlier_job_lines
from jobs.client.manifests import read_manifest
from jobs.client.opening import (
    find_job,
    ledger_at,
    open_store_at,
    settings_with,
    store_address,
)
from jobs.errors import ExitCode, Interrupted
from jobs.folder.layout import JobFolder, JobKeys
from jobs.formatting import agreeing, counted, size
from jobs.ledger import Ledger
from jobs.ledger.types import BY_BUDGET
from jobs.terminal.console import Terminal


@click.command()
@manifest_argument
@click.option(
    "--store",
    metavar="URL",
    help="Folder or s3://bucket/prefix. [default: the manifest's, else SDBATCH_STORE, else that "
    "of a running `sdbatch local`, else out]",
)
@endpoint_option
@click.option("--job", metavar="NAME", help="Name of the job. [default: by content]")
@click.option(
    "--priority",
    type=click.IntRange(1, 100),
    help="Share of the workers against other jobs. [default: what the job has, 10 if it is new]",
)
@no_reuse_option
@click.option("--wait", is_flag=True, help="Then watch the job until it ends.")
@redis_option
@allow_outside_option
@json_option
@click.pass_obj
def submit(
    terminal: Terminal,
    manifest: Path,
    store: str | None,
    endpoint: str | None,
    job: str | None,
    priority: int | None,
    no_reuse: bool,
    wait: bool,
    redis: str | None,
    allow_outside: bool,
) -> int:
    """Queue a manifest for the workers of its model.

    Submitting the same manifest again continues it; nothing is rendered twice, and images that were
    deleted from its folder are rendered again.

    \b
    Example:
      sdbatch submit shapes.yaml --store s3://bucket/jobs
    """
    from jobs.client.enter import submit as submit_manifest
    from jobs.queue.messages import CeleryQueue

    settings = settings_with(redis)
    read = read_manifest(terminal, manifest, allow_outside=allow_outside)
    given = store or read.output.store
    address = given or settings.job_store
    opened = open_store_at(settings, address, endpoint, given=bool(given))
    ledger = ledger_at(redis)
    with terminal.status("planning"):
        expansion = read.expansion
    if job is None:
        with terminal.status("looking for earlier jobs"):
            earlier = earlier_job_lines(opened, read, read.job_id(), expansion.tasks())
        terminal.note(earlier)
    submitted = submit_manifest(
        read,
        opened,
        ledger,
        CeleryQueue(settings.redis),
        address=store_address(opened, address),
        job=job,
        priority=priority,
        webhook=read.output.webhook,
        reproducible=settings.reproducible,
        reuse=not no_reuse,
        status=terminal.status,
    )
    if not (terminal.json and wait):
        say_submitted(terminal, ledger, submitted)
    if (warning := ledger.eviction()) is not None:
        terminal.note([f"warning: {warning}"])
    return _watched(terminal, ledger, submitted.job) if wait else ExitCode.DONE


@click.command()
@job_argument
@redis_option
@json_option
@click.pass_obj
def watch(terminal: Terminal, job: str, redis: str | None) -> int:
    """Follow a job until it ends; Ctrl-C ends the watching, not the job. The exit code says how it
    ended, as that of `sdbatch status` does.

    \b
    Example:
      sdbatch watch shapes
    """
    ledger = ledger_at(redis)
    return _watched(terminal, ledger, find_job(ledger, job).job_id)


def _watched(terminal: Terminal, ledger: Ledger, job_id: str) -> int:
    from jobs.client.watch import watch as follow

    try:
        ended = follow(ledger, job_id, terminal.err)
    except KeyboardInterrupt:
        again = f"sdbatch watch {job_id}"
        raise Interrupted(f"no longer watching; the job goes on: {again}") from None
    if terminal.json:
        terminal.document(job_document(ended))
    else:
        terminal.say(job_line(ended))
    if ended.reason == BY_BUDGET:
        terminal.note([f"its budget of {ended.spent} is used up; submit it with a larger one"])
        return ExitCode.INTERRUPTED
    return job_code(ended)


@click.command()
@job_argument
@click.argument("dest", metavar="DEST", type=click.Path(path_type=Path))
@click.option(
    "--store",
    metavar="URL",
    help="Where the job is, so that no ledger is asked; JOB is then its whole name.",
)
@endpoint_option
@click.option("--containing", metavar="TEXT", help="Only images whose prompt has this text.")
@click.option(
    "--as",
    "form",
    type=click.Choice(["files", "webdataset", "parquet", "captions", "hf"]),
    default="files",
    help="Files as in the job's folder; tar files in img2dataset's layout (webdataset); tables "
    "with the images inside (parquet); name.txt beside name.png (captions); Hugging Face's "
    "imagefolder (hf). [default: files]",
)
@click.option(
    "--from",
    "stars_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Only images that this list names, as the gallery saves stars.",
)
@redis_option
@json_option
@click.pass_obj
def collect(
    terminal: Terminal,
    job: str,
    dest: Path,
    store: str | None,
    endpoint: str | None,
    containing: str | None,
    form: str,
    stars_file: Path | None,
    redis: str | None,
) -> int:
    """Copy the images of a job into DEST/JOB, each checked; again for only what is missing. What is
    damaged is named, with what repairs it, and the exit code is 5.

    \b
    Example:
      sdbatch collect shapes pictures
      sdbatch collect shapes-0c7c52d1c2fe pictures --store s3://bucket/jobs
      sdbatch collect shapes best --from stars.txt
      sdbatch collect shapes training --as webdataset
    """
    from jobs.client.collect import collect as copy
    from jobs.client.collect import collect_as, refuse_same
    from jobs.client.stars import read_stars
    from jobs.dataset import Form

    total, given = None, store is not None
    if store is None:
        found = find_job(ledger_at(redis), job)
        job, store, total = found.job_id, found.store, found.done
    opened = open_store_at(settings_with(redis), store, endpoint, given=given)
    refuse_same(opened, dest)
    stars = None if stars_file is None else read_stars(stars_file, job)
    folder = JobFolder(opened, JobKeys(job))
    is_whole = containing is None and stars is None
    with terminal.counting("collecting", total if is_whole else None) as tick:
        if form == "files":
            collected = copy(folder, dest, containing=containing, stars=stars, tick=tick)
        else:
            collected = collect_as(
                *(Form(form), folder, dest), containing=containing, stars=stars, tick=tick
            )
    repairs = list(_repairs(collected.damaged, job, store, endpoint))
    if terminal.json:
        terminal.document({**collected.to_json(), "repairs": repairs})
    else:
        copied = f"{counted(collected.copied, 'image')} copied ({size(collected.bytes_copied)})"
        were = agreeing(collected.present, "was", "were")
        terminal.say(f"{copied}, {collected.present:,} {were} there already")
        for path in collected.damaged:
            terminal.say(f"not what its record says, not copied: {path}")
        for repair in repairs:
            terminal.say(f"repair    {repair}")
        terminal.say(f"folder    {collected.folder}")
    return ExitCode.STORE if collected.damaged else ExitCode.DONE


def _repairs(damaged: Sequence[str], job: str, store: str, endpoint: str | None) -> Iterator[str]:
    """Commands that repair damage in a job's folder."""
    if any(path.startswith("inputs/") for path in damaged):
        yield "submit or run its manifest again, which writes damaged inputs anew"
    if not all(path.startswith("inputs/") for path in damaged):
        words = ["sdbatch", "resume", job, "--store", store, "--check"]
        yield shlex.join(words if endpoint is None else [*words, "--endpoint", endpoint])
        yield "or, of a job that sdbatch run makes: delete these images there, and run it again"
