"""A job that does not move on says why to whoever asks for its status."""

from __future__ import annotations

import contextlib

from jobs.errors import LedgerError, SdbatchError
from jobs.ledger.base import Ledger
from worker.logs import masked

LONGEST = 500  # characters; a ledger is no log


def note_error(ledger: Ledger, job_id: str, owner: str, error: SdbatchError) -> None:
    """owner: the worker that met it. Nothing happens if it is the ledger that fails."""
    if isinstance(error, LedgerError):
        return
    text = " ".join(masked(str(error)).split())
    with contextlib.suppress(LedgerError):
        ledger.note_error(job_id, f"{owner}: {text}"[:LONGEST])
