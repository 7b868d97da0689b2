"""Words that several commands say of a job, and its exit code."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jobs.client.served import no_worker, served_models, unserved
from jobs.errors import ExitCode
from jobs.formatting import agreeing
from jobs.ledger import Ledger
from jobs.ledger.types import JobState, JobStatus
from jobs.terminal.console import Terminal

if TYPE_CHECKING:
    from jobs.client.enter import Submitted


def job_document(job: JobStatus) -> dict[str, Any]:
    """A job as commands give it as JSON."""
    values = asdict(job)
    del values["first_shard"]  # of a part
    return {"job": values.pop("job_id"), **values}


def workers_of(job: JobStatus, served: Counter[str]) -> int:
    """How many workers take shards of a job. served: workers by model."""
    names = [part.name for part in job.models] or [job.model]
    return sum(served[name] for name in names)


def job_line(job: JobStatus) -> str:
    """A job in one line, for people."""
    failed = f", {job.failed:,} failed" if job.failed else ""
    trouble = "" if job.error is None else f"; last error: {job.error}"
    return f"{job.job_id}  {state_text(job)}  {done_part(job)}{failed}{trouble}"


def state_text(job: JobStatus) -> str:
    """`active`, or `paused: budget`."""
    return str(job.state) if job.reason is None else f"{job.state}: {job.reason}"


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


def say_submitted(terminal: Terminal, ledger: Ledger, submitted: Submitted) -> None:
    """A job that was entered into the ledger, and whether there are workers for it."""
    job, served = ledger.status(submitted.job), served_models(ledger.workers())
    if terminal.json:
        terminal.document({**submitted.to_json(), "workers": workers_of(job, served)})
        return
    terminal.say(f"job       {submitted.job}{_known(submitted)}")
    failed = f", {submitted.failed:,} failed" if submitted.failed else ""
    terminal.say(f"images    {submitted.images:,}, {submitted.done:,} done{failed}")
    if submitted.gone:
        were = agreeing(submitted.gone, "that was done is", "that were done are")
        terminal.say(f"gone      {submitted.gone:,} {were} not in the folder: again")
    terminal.say(f"folder    {submitted.url}")
    if submitted.lacks_dataset:
        make = f"sdbatch collect {submitted.job} DEST --as webdataset"
        terminal.note([f"it was done before a data set was asked for; {make} makes one"])
    terminal.note([no_worker(model, served) for model in unserved(ledger, job, served)])


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
