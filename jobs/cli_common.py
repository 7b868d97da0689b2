"""What several subcommands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.console import Terminal
from jobs.errors import ExitCode, InputError, NotFoundError
from jobs.formatting import agreeing
from jobs.ledger import Ledger, open_ledger
from jobs.ledger.base import JobState, JobStatus, check_readable
from jobs.manifest import Manifest, load_manifest
from jobs.served import no_worker, served_models, waits_for_worker
from jobs.settings import Settings
from jobs.storage import LocalStore, Store, open_store
from jobs.warnings import WarningList

if TYPE_CHECKING:
    from jobs.submit import Submitted

json_option = click.option(
    "--json",
    is_flag=True,
    expose_value=False,  # `main` has seen it: a bad command line is answered in JSON too
    help="Print one JSON document to stdout, also for errors.",
)
allow_outside_option = click.option(
    "--allow-outside",
    is_flag=True,
    help="Let manifests name files outside their own folder.",
)
manifest_argument = click.argument("manifest", metavar="FILE", type=click.Path(path_type=Path))
redis_option = click.option(
    "--redis",
    metavar="URL",
    help="The Redis server that holds queue and ledger. "
    "[default: SDBATCH_REDIS, else that of a running `sdbatch local`, else "
    "redis://127.0.0.1:6379/0]",
)
endpoint_option = click.option(
    "--endpoint",
    metavar="URL",
    help="The server of an s3:// store, http://host:port, for this command. A worker goes by its "
    "own AWS_ENDPOINT_URL. [default: AWS_ENDPOINT_URL, else what the AWS configuration says]",
)
job_argument = click.argument("job", metavar="JOB")


def read_manifest(
    terminal: Terminal, path: Path, *, allow_outside: bool, model: str | None = None
) -> Manifest:
    """`load_manifest` with progress, for commands; says its warnings. Raises `ManifestError`."""
    found = WarningList()
    try:
        with terminal.counting(f"reading {path.name}") as tick:
            return load_manifest(
                path, allow_outside=allow_outside, model=model, tick=tick, warnings=found
            )
    finally:
        terminal.warn(found)


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


def job_line(job: JobStatus) -> str:
    """A job in one line, for people."""
    failed = f", {job.failed:,} failed" if job.failed else ""
    trouble = "" if job.error is None else f"; last error: {job.error}"
    return f"{job.job_id}  {job.state}  {done_part(job)}{failed}{trouble}"


def done_part(job: JobStatus) -> str:
    """How much of a job is done, such as `12 of 40 (30 %)`."""
    return f"{job.done:,} of {job.total:,} ({_percent(job.done, job.total)})"


def job_code(job: JobStatus) -> ExitCode:
    """How a job ended; `DONE` also while it goes on."""
    if job.state is JobState.CANCELLED:
        return ExitCode.CANCELLED
    if job.state is JobState.DONE and job.failed:
        return ExitCode.SOME_FAILED
    return ExitCode.DONE


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "100 %"


def store_address(store: Store, given: str) -> str:
    """As a worker opens it, which runs in another folder."""
    return str(store.root.absolute()) if isinstance(store, LocalStore) else given


def say_submitted(terminal: Terminal, ledger: Ledger, submitted: Submitted) -> None:
    """A job that was entered into the ledger, and whether there are workers for it."""
    job, served = ledger.status(submitted.job), served_models(ledger.workers())
    if terminal.json:
        terminal.document({**submitted.to_json(), "workers": served[job.model]})
        return
    terminal.say(f"job       {submitted.job}{_known(submitted)}")
    failed = f", {submitted.failed:,} failed" if submitted.failed else ""
    terminal.say(f"images    {submitted.images:,}, {submitted.done:,} done{failed}")
    if submitted.gone:
        were = agreeing(submitted.gone, "that was done is", "that were done are")
        terminal.say(f"gone      {submitted.gone:,} {were} not in the folder: again")
    terminal.say(f"folder    {submitted.url}")
    if waits_for_worker(job, served):
        terminal.note([no_worker(job.model, served)])


def _known(submitted: Submitted) -> str:
    """How a job stands that was in the ledger before."""
    if submitted.new:
        return ""
    if submitted.state is JobState.DONE:
        again = f"; sdbatch retry {submitted.job} does the failed ones again"
        return f" (was done already{again if submitted.failed else ''})"
    if submitted.state is JobState.PAUSED:
        return f" (is paused; sdbatch unpause {submitted.job})"
    return " (goes on)"
