"""Follows a job in the ledger until it ends."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from jobs.errors import DamagedLedgerError, LedgerError
from jobs.ledger.base import JobState, JobStatus, Ledger
from jobs.progress import RunProgress

EVERY_S = 1.0
PATIENCE_S = 60.0
"""How long a ledger may be away before that is an error."""

ENDED = (JobState.DONE, JobState.CANCELLED)


def watch(
    ledger: Ledger,
    job_id: str,
    console: Console,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> JobStatus:
    """Shows images, steps, rate, time left and what holds the job up, until it is done or
    cancelled; how it ended.

    Raises `NotFoundError` if it is forgotten meanwhile, `LedgerError` if the ledger is away for
    longer than a restart takes.
    """
    status = ledger.status(job_id)
    if status.state in ENDED:
        return status
    begun, evaluated = status.done, status.evaluated
    answered_at = clock()
    left = status.evaluations - evaluated
    told = None
    with RunProgress(status.total, max(0, left), console, clock=clock) as progress:
        progress.at(reused=begun)
        while status.state not in ENDED:
            if status.error is not None and status.error != told:
                console.print(Text(f"last error: {status.error}", style="red"))
            told = status.error
            sleep(EVERY_S)
            try:
                status = ledger.status(job_id)
            except DamagedLedgerError:
                raise
            except LedgerError:
                if clock() - answered_at > PATIENCE_S:
                    raise
                continue
            answered_at = clock()
            # A retry may take failed images back, and a worker that died renders some steps twice.
            progress.at(
                reused=begun,
                rendered=max(0, status.done - begun),
                failed=status.failed,
                evaluated=max(0, status.evaluated - evaluated),
            )
    return status
