"""Subcommands that look at jobs in the ledger, and steer them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from jobs.budget import Budget
from jobs.cli.job_text import (
    done_part,
    job_code,
    job_document,
    say_submitted,
    state_text,
    workers_of,
)
from jobs.cli.options import endpoint_option, job_argument, json_option, redis_option
from jobs.client.changes import CHANGES, Change
from jobs.client.opening import find_job, ledger_at, open_store_at, settings_with, store_address
from jobs.client.served import no_worker, served_models, unserved, waits_for_worker
from jobs.errors import ExitCode, InputError
from jobs.formatting import counted
from jobs.ledger.types import JobState, JobStatus, WorkerInfo
from jobs.terminal.console import Terminal
from jobs.terminal.figures import duration, figures_of, speed_text


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
    ledger = ledger_at(redis)
    found, served = ledger.jobs(), served_models(ledger.workers())
    if terminal.json:
        terminal.document({"jobs": [_document(job, served) for job in found]})
        return
    headers = ("JOB", "MODEL", "STATE", "DONE", "FAILED", "SPEED", "LEFT")
    terminal.table(headers, [_row(job) for job in found])
    for job in found:
        if job.error is not None:
            label = "" if job.state is JobState.UNKNOWN else "last error: "
            terminal.say(f"{job.job_id}: {label}{' '.join(job.error.split())}")
    waiting = {model for job in found for model in unserved(ledger, job, served)}
    terminal.note(no_worker(model, served) for model in sorted(waiting))


def _row(job: JobStatus) -> tuple[str, ...]:
    if job.state is JobState.UNKNOWN:
        return job.job_id, "", job.state, "", "", "", ""
    figures = figures_of(job)
    speed = "" if figures.images_per_s is None else f"{figures.images_per_s:.2f}/s"
    left = "" if figures.remaining_s is None else duration(figures.remaining_s)
    done = done_part(job)
    return job.job_id, job.model, state_text(job), done, f"{job.failed:,}", speed, left


def _document(job: JobStatus, served: Counter[str]) -> dict[str, Any]:
    """workers: how many take shards of the job's models."""
    return {**job_document(job), "workers": workers_of(job, served)}


_OF_A_PART = ("shards", "done", "failed", "waiting", "published", "leased")


@click.command()
@job_argument
@redis_option
@json_option
@click.pass_obj
def status(terminal: Terminal, job: str, redis: str | None) -> ExitCode:
    """Show where a job stands. JOB may be shortened to a unique beginning.

    The exit code is 0 while the job goes on and when all of it is done, 3 if it is done but for
    images that failed, 8 if it was cancelled.

    \b
    Example:
      sdbatch status shapes-0c7c
    """
    ledger = ledger_at(redis)
    found, served = find_job(ledger, job), served_models(ledger.workers())
    parts = ledger.parts(found)
    if terminal.json:
        by_model = [
            {"name": part.model, "images": part.total, "workers": served[part.model]}
            | {name: getattr(part, name) for name in _OF_A_PART}
            for part in parts
            if found.models
        ]
        terminal.document({**_document(found, served), "models": by_model})
    else:
        for label, text in _status_lines(found, parts, served):
            terminal.say(f"{label:12} {text}")
    return job_code(found)


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
    ledger = ledger_at(redis)
    found = ledger.failures(find_job(ledger, job).job_id)
    if terminal.json:
        terminal.document({"failures": [asdict(failure) for failure in found]})
        return
    for failure in found:
        terminal.say(f"{failure.index}  {failure.name}  {failure.reason}")


def _changing(name: str, text: str, change: Change) -> click.Command:
    """A command that changes one job and says what became of it."""

    @click.command(name, help=f"{text}\n\n\b\nExample:\n  sdbatch {name} shapes")
    @job_argument
    @redis_option
    @json_option
    @click.pass_obj
    def command(terminal: Terminal, job: str, redis: str | None) -> None:
        ledger = ledger_at(redis)
        found = find_job(ledger, job)
        said = change(ledger, found.job_id)
        if terminal.json:
            terminal.document(job_document(ledger.status(found.job_id)))
        else:
            terminal.say(f"{found.job_id}: {said}")

    return command


pause = _changing("pause", "Let a job rest; images being rendered are finished.", CHANGES["pause"])
unpause = _changing("unpause", "Let a paused job go on.", CHANGES["unpause"])
cancel = _changing(
    "cancel",
    "End a job: its workers see it within about a second and stop after the step that they are at. "
    "Finished images stay.",
    CHANGES["cancel"],
)
retry = _changing("retry", "Render the failed images of a job again.", CHANGES["retry"])


@click.command()
@job_argument
@click.option("--force", is_flag=True, help="Also a job that is neither done nor cancelled.")
@redis_option
@json_option
@click.pass_obj
def forget(terminal: Terminal, job: str, force: bool, redis: str | None) -> None:
    """Take a job that is done or cancelled out of the ledger. Its folder stays as it is, pictures
    and all; `sdbatch resume` enters it again.

    \b
    Example:
      sdbatch forget shapes
    """
    ledger = ledger_at(redis)
    found = find_job(ledger, job, unread=True)
    if not ledger.forget(found.job_id, force=force):
        state = ledger.status(found.job_id).state
        raise InputError(
            f"{found.job_id} is {state}; cancel it first (sdbatch cancel {found.job_id}), or "
            "forget it as it is with --force"
        )
    known = found.state is not JobState.UNKNOWN
    folder = f"{found.store.rstrip('/')}/{found.job_id}" if known else None
    if terminal.json:
        terminal.document({"job": found.job_id, "folder": folder})
    else:
        where = "where they are" if folder is None else f"in {folder}"
        terminal.say(f"{found.job_id}: forgotten; its pictures stay {where}")


@click.command()
@job_argument
@click.option(
    "--store",
    metavar="URL",
    help="Where the job's folder is. [default: SDBATCH_STORE, else that of a running "
    "`sdbatch local`, else out]",
)
@endpoint_option
@click.option(
    "--check",
    is_flag=True,
    help="Read every image first, and delete those that are not what their records say.",
)
@redis_option
@json_option
@click.pass_obj
def resume(
    terminal: Terminal,
    job: str,
    store: str | None,
    endpoint: str | None,
    check: bool,
    redis: str | None,
) -> None:
    """Enter a job again from its folder, as after a lost Redis. The folder is the truth: only what
    is missing there runs, also images that the ledger takes for done.

    \b
    Example:
      sdbatch resume shapes-0c7c52d1c2fe --store s3://bucket/jobs
    """
    from jobs.client.resume import resume as enter_again
    from jobs.queue.messages import CeleryQueue

    settings = settings_with(redis)
    address = store or settings.job_store
    opened = open_store_at(settings, address, endpoint, given=store is not None)
    ledger = ledger_at(redis)
    resumed = enter_again(
        job,
        opened,
        ledger,
        CeleryQueue(settings.redis),
        address=store_address(opened, address),
        check=check,
        status=terminal.status,
    )
    say_submitted(terminal, ledger, resumed)


def _status_lines(
    job: JobStatus, parts: Sequence[JobStatus], served: Counter[str]
) -> list[tuple[str, Any]]:
    figures = figures_of(job)
    speed = [] if figures.images_per_s is None else [("speed", speed_text(figures))]
    trouble = [] if job.error is None else [("last error", job.error)]
    trouble += [
        ("waits", no_worker(part.model, served)) for part in parts if waits_for_worker(part, served)
    ]
    models = [
        ("model", f"{part.model}: {done_part(part)} done, {counted(served[part.model], 'worker')}")
        for part in parts
        if job.models
    ]
    return [
        ("job", job.job_id),
        ("state", state_text(job)),
        *(models or [("model", job.model)]),
        ("images", f"{job.done:,} of {job.total:,} done, {job.failed:,} failed"),
        ("steps", f"{figures.evaluated:,} of {figures.evaluations:,}"),
        *speed,
        ("took", f"{duration(job.worker_s)} of workers"),
        *([] if job.budget is None else [("budget", _budget_text(job.budget))]),
        ("shards", f"{job.leased:,} rendering, {job.published:,} queued, {job.waiting:,} waiting"),
        ("priority", job.priority),
        *([("submitter", job.submitter)] if job.submitter else []),
        ("store", job.store),
        *trouble,
    ]


def _budget_text(budget: Budget) -> str:
    """`8 hours, 500 images`."""
    parts = [] if budget.hours is None else [f"{budget.hours:g} hours of workers"]
    if budget.money is not None and budget.price is not None:
        parts.append(f"{budget.money:g} at {budget.price:g} an hour")
    if budget.images is not None:
        parts.append(counted(budget.images, "image"))
    return ", ".join(parts)


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
    ledger = ledger_at(redis)
    found = ledger.workers()
    if terminal.json:
        terminal.document({"workers": [asdict(worker) for worker in found]})
        return
    now_s = ledger.time_s() if found else 0.0
    headers = ("WORKER", "DEVICE", "MODEL", "IMAGES", "SPEED", "ROWS", "SEEN", "STATE")
    terminal.table(headers, [_worker_row(worker, now_s) for worker in found])


def _worker_row(worker: WorkerInfo, now_s: float) -> tuple[str, ...]:
    """Cells of a worker: with the rows of its last batch that held images. now_s: Unix time."""
    rows = "" if worker.rows is None else f"{worker.rows_used or 0} of {worker.rows}"
    ago_s = None if worker.seen_s is None else max(0.0, now_s - worker.seen_s)
    seen = "" if ago_s is None else f"{ago_s:.0f} s ago"
    speed = "" if worker.images_per_s is None else f"{worker.images_per_s:.2f}/s"
    done = f"{worker.images:,}", speed, rows
    return worker.name, worker.device, worker.model, *done, seen, worker.state
