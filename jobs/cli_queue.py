"""Subcommands around the queue: submitting, watching over jobs, and the worker itself.

`worker` imports the package of that name inside, so that the others work without torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from jobs.cli_common import allow_outside_option, json_option, manifest_argument, read_manifest
from jobs.console import Terminal, size
from jobs.errors import ExitCode, InputError, Interrupted, NotFoundError
from jobs.ledger import Ledger, open_ledger
from jobs.ledger.base import JobState, JobStatus
from jobs.settings import Settings
from jobs.storage import JobKeys, open_store
from jobs.storage.local import LocalStore

redis_option = click.option(
    "--redis",
    metavar="URL",
    help="The Redis server that holds queue and ledger. "
    "[default: SDBATCH_REDIS, else redis://127.0.0.1:6379/0]",
)
job_argument = click.argument("job", metavar="JOB")


def _ledger(redis: str | None) -> Ledger:
    return open_ledger(redis or Settings.from_env(os.environ).redis)


def find_job(ledger: Ledger, name: str) -> JobStatus:
    """The job of this name, or the only one whose name begins so.

    Raises `NotFoundError` if there is none, `InputError` if there are several.
    """
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


@click.command()
@manifest_argument
@click.option("--store", metavar="URL", help="Folder or s3://bucket/prefix. [default: out]")
@click.option("--job", metavar="NAME", help="Name of the job. [default: by content]")
@click.option(
    "--priority",
    type=click.IntRange(1, 100),
    default=10,
    show_default=True,
    help="Share of the workers against other jobs.",
)
@click.option("--wait", is_flag=True, help="Then watch the job until it ends.")
@redis_option
@allow_outside_option
@json_option
@click.pass_obj
def submit(
    terminal: Terminal,
    manifest: Path,
    store: str | None,
    job: str | None,
    priority: int,
    wait: bool,
    redis: str | None,
    allow_outside: bool,
) -> int:
    """Queue a manifest for the workers of its model.

    Submitting the same manifest again continues it; nothing is rendered twice.

    \b
    Example:
      sdbatch submit shapes.yaml --store s3://bucket/jobs
    """
    from jobs.queue import CeleryQueue
    from jobs.submit import submit as submit_manifest

    settings = Settings.from_env(os.environ)
    read = read_manifest(terminal, manifest, allow_outside=allow_outside)
    opened = open_store(store or read.output.store or settings.store)
    ledger = _ledger(redis)
    submitted = submit_manifest(
        read,
        opened,
        ledger,
        CeleryQueue(redis or settings.redis),
        address=_address(opened, store or read.output.store or settings.store),
        job=job,
        priority=priority,
        status=terminal.status,
    )
    if terminal.json and not wait:
        terminal.document(submitted.to_json())
    elif not terminal.json:
        terminal.say(f"job       {submitted.job}{'' if submitted.new else ' (goes on)'}")
        terminal.say(f"images    {submitted.images:,}, {submitted.done:,} done")
        terminal.say(f"folder    {submitted.url}")
    return _watched(terminal, ledger, submitted.job) if wait else ExitCode.DONE


def _address(store: object, given: str) -> str:
    """As a worker opens it, which runs in another folder."""
    return str(store.root.absolute()) if isinstance(store, LocalStore) else given


@click.command()
@job_argument
@redis_option
@json_option
@click.pass_obj
def watch(terminal: Terminal, job: str, redis: str | None) -> int:
    """Follow a job until it ends; Ctrl-C ends the watching, not the job.

    \b
    Example:
      sdbatch watch shapes
    """
    ledger = _ledger(redis)
    return _watched(terminal, ledger, find_job(ledger, job).job_id)


def _watched(terminal: Terminal, ledger: Ledger, job_id: str) -> int:
    from jobs.watch import watch as follow

    try:
        ended = follow(ledger, job_id, terminal.err)
    except KeyboardInterrupt:
        again = f"sdbatch watch {job_id}"
        raise Interrupted(f"no longer watching; the job goes on: {again}") from None
    if terminal.json:
        terminal.document(asdict(ended))
    else:
        terminal.say(_line(ended))
    if ended.state is JobState.CANCELLED:
        return ExitCode.CANCELLED
    return ExitCode.SOME_FAILED if ended.failed else ExitCode.DONE


@click.command()
@job_argument
@click.argument("dest", metavar="DEST", type=click.Path(path_type=Path))
@click.option(
    "--store",
    metavar="URL",
    help="Where the job is, so that no ledger is asked; JOB is then its whole name.",
)
@click.option("--containing", metavar="TEXT", help="Only images whose prompt has this text.")
@redis_option
@json_option
@click.pass_obj
def collect(
    terminal: Terminal,
    job: str,
    dest: Path,
    store: str | None,
    containing: str | None,
    redis: str | None,
) -> int:
    """Copy the images of a job into DEST/JOB, each checked; again for only what is missing.

    \b
    Example:
      sdbatch collect shapes pictures
      sdbatch collect shapes-0c7c52d1c2fe pictures --store s3://bucket/jobs
    """
    from jobs.collect import collect as copy
    from jobs.collect import refuse_same

    total = None
    if store is None:
        found = find_job(_ledger(redis), job)
        job, store, total = found.job_id, found.store, found.done
    opened = open_store(store)
    refuse_same(opened, dest)
    with terminal.counting("collecting", total if containing is None else None) as tick:
        collected = copy(opened, JobKeys(job), dest, containing=containing, tick=tick)
    if terminal.json:
        terminal.document(collected.to_json())
    else:
        copied = f"{collected.copied:,} images copied ({size(collected.bytes_copied)})"
        terminal.say(f"{copied}, {collected.present:,} were there already")
        for path in collected.damaged:
            terminal.say(f"not what its record says, not copied: {path}")
        terminal.say(f"folder    {collected.folder}")
    return ExitCode.STORE if collected.damaged else ExitCode.DONE


@click.command()
@redis_option
@json_option
@click.pass_obj
def jobs(terminal: Terminal, redis: str | None) -> None:
    """List jobs, the latest first.

    \b
    Example:
      sdbatch jobs
    """
    found = _ledger(redis).jobs()
    if terminal.json:
        terminal.document({"jobs": [asdict(job) for job in found]})
        return
    for job in found:
        terminal.say(_line(job))


@click.command()
@job_argument
@redis_option
@json_option
@click.pass_obj
def status(terminal: Terminal, job: str, redis: str | None) -> None:
    """Show where a job stands. JOB may be shortened to a unique beginning.

    \b
    Example:
      sdbatch status shapes-0c7c
    """
    found = find_job(_ledger(redis), job)
    if terminal.json:
        terminal.document(asdict(found))
        return
    for label, text in _status_lines(found):
        terminal.say(f"{label:12} {text}")


@click.command()
@job_argument
@redis_option
@json_option
@click.pass_obj
def failures(terminal: Terminal, job: str, redis: str | None) -> None:
    """List the images of a job that failed, with their reasons.

    \b
    Example:
      sdbatch failures shapes
    """
    ledger = _ledger(redis)
    found = ledger.failures(find_job(ledger, job).job_id)
    if terminal.json:
        terminal.document({"failures": [asdict(failure) for failure in found]})
        return
    for failure in found:
        terminal.say(f"{failure.index}  {failure.name}  {failure.reason}")


@click.command()
@redis_option
@json_option
@click.pass_obj
def workers(terminal: Terminal, redis: str | None) -> None:
    """List workers: where they are, which model they have, what they do.

    \b
    Example:
      sdbatch workers
    """
    found = _ledger(redis).workers()
    if terminal.json:
        terminal.document({"workers": [asdict(worker) for worker in found]})
        return
    for worker in found:
        images = f"{worker.images:,} images"
        terminal.say(f"{worker.name}  {worker.device}  {worker.model}  {worker.state}  {images}")


def _changing(name: str, text: str, change: Callable[[Ledger, str], str]) -> click.Command:
    """A command that changes one job and says what became of it."""

    @click.command(name, help=f"{text}\n\n\b\nExample:\n  sdbatch {name} shapes")
    @job_argument
    @redis_option
    @json_option
    @click.pass_obj
    def command(terminal: Terminal, job: str, redis: str | None) -> None:
        ledger = _ledger(redis)
        found = find_job(ledger, job)
        said = change(ledger, found.job_id)
        if terminal.json:
            terminal.document(asdict(ledger.status(found.job_id)))
        else:
            terminal.say(f"{found.job_id}: {said}")

    return command


def _to(state: JobState) -> Callable[[Ledger, str], str]:
    def change(ledger: Ledger, job_id: str) -> str:
        after = ledger.set_state(job_id, state)
        if after is not state:
            raise InputError(f"{job_id} is {after} and stays so")
        return str(after)

    return change


def _retry(ledger: Ledger, job_id: str) -> str:
    count = ledger.retry(job_id)
    return f"{count:,} failed image{'' if count == 1 else 's'} to do again"


pause = _changing(
    "pause", "Let a job rest; images being rendered are finished.", _to(JobState.PAUSED)
)
unpause = _changing("unpause", "Let a paused job go on.", _to(JobState.ACTIVE))
cancel = _changing(
    "cancel", "End a job within one step; finished images stay.", _to(JobState.CANCELLED)
)
retry = _changing("retry", "Render the failed images of a job again.", _retry)


@click.command()
@click.option("--model", metavar="NAME", help="Of the model list. [default: SDBATCH_MODEL or demo]")
@click.option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N. [default: auto]")
@redis_option
def worker(model: str | None, device: str | None, redis: str | None) -> None:
    """Render shards of jobs until told to stop: one process, one model, one device.

    Ctrl-C or SIGTERM ends it between two steps; unfinished images go back to the queue at once.

    \b
    Example:
      sdbatch worker --model demo
    """
    # The worker's Celery app reads its settings from the environment, here as under `celery`.
    given = {"SDBATCH_MODEL": model, "SDBATCH_DEVICE": device, "SDBATCH_REDIS": redis}
    os.environ.update({name: value for name, value in given.items() if value is not None})
    try:
        from worker.app import app
    except ModuleNotFoundError as error:
        raise InputError(
            f"a worker needs {error.name}, which is not installed: pip install 'sdbatch[worker]'"
        ) from None
    app.worker_main(["worker", "--without-gossip", "--without-mingle", "--loglevel=INFO"])


COMMANDS: Sequence[click.Command] = (
    submit,
    watch,
    collect,
    jobs,
    status,
    failures,
    pause,
    unpause,
    cancel,
    retry,
    workers,
    worker,
)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "100 %"


def _line(job: JobStatus) -> str:
    failed = f", {job.failed:,} failed" if job.failed else ""
    done = f"{job.done:,} of {job.total:,} ({_percent(job.done, job.total)})"
    return f"{job.job_id}  {job.state}  {done}{failed}"


def _status_lines(job: JobStatus) -> list[tuple[str, Any]]:
    return [
        ("job", job.job_id),
        ("state", job.state),
        ("model", job.model),
        ("images", f"{job.done:,} of {job.total:,} done, {job.failed:,} failed"),
        ("steps", f"{job.evaluated:,} of {job.evaluations:,}"),
        ("shards", f"{job.leased:,} rendering, {job.published:,} queued, {job.waiting:,} waiting"),
        ("priority", job.priority),
        ("store", job.store),
    ]
