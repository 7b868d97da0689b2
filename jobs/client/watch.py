"""Follows a job in the ledger until it ends."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from jobs.client.served import no_worker, served_models, unserved, waits_for_worker
from jobs.errors import DamagedLedgerError, LedgerError
from jobs.ledger.base import Ledger
from jobs.ledger.types import BY_BUDGET, JobState, JobStatus
from jobs.terminal.figures import figures_of
from jobs.terminal.progress import ProgressDisplay

EVERY_S = 1.0
PATIENCE_S = 60.0
"""How long a ledger may be unreachable before that is an error."""

ENDED = (JobState.DONE, JobState.CANCELLED)


def watch(
    ledger: Ledger,
    job_id: str,
    console: Console,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    enough: Callable[[], bool] = lambda: False,
) -> JobStatus:
    """Shows images, steps, rate, time left and what holds the job up, until it is done, cancelled
    or paused by its budget; how it ended.

    enough: asked about once a second; True ends the watching.

    Raises `NotFoundError` if it is forgotten meanwhile, `LedgerError` if the ledger is unreachable
    for longer than a restart takes.
    """
    status = ledger.status(job_id)
    if status.state in ENDED:
        return status
    answered_at = clock()
    told = _Told(ledger, console)
    with ProgressDisplay(lambda: figures_of(status), console, clock=clock) as progress:
        while not (status.state in ENDED or status.reason == BY_BUDGET or enough()):
            progress.show(at_once=told.tell(status))
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
    return status


class _Told:
    """State of a job as a person was told it so far: with its last error, and what it waits for."""

    def __init__(self, ledger: Ledger, console: Console) -> None:
        self._ledger = ledger
        self._console = console
        self._state = JobState.ACTIVE
        self._error: str | None = None
        self._unserved: dict[str, str] = {}

    def tell(self, status: JobStatus) -> bool:
        """Tells what is new; whether the state is."""
        if status.error is not None and status.error != self._error:
            self._console.print(Text(f"last error: {status.error}", style="red"))
        self._error = status.error
        waits = self._without_worker(status)
        for model, sentence in waits.items():
            if model not in self._unserved:
                self._console.print(Text(sentence))
        self._unserved = waits
        before, self._state = self._state, status.state
        return self._state is not before

    def _without_worker(self, status: JobStatus) -> dict[str, str]:
        """Sentences about models that no worker has, by model."""
        if status.models or waits_for_worker(status, Counter()):
            with contextlib.suppress(LedgerError):  # then the next status tells it
                served = served_models(self._ledger.workers())
                waiting = unserved(self._ledger, status, served)
                return {model: no_worker(model, served) for model in waiting}
        return {}
