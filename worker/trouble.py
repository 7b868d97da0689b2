"""A job that does not move on says why to whoever asks for its status."""

from __future__ import annotations

import contextlib

from jobs.errors import LedgerError, SdbatchError
from jobs.ledger.base import Ledger
from worker.logs import masked

LONGEST = 500  # characters; a ledger is no log


def note_error(ledger: Ledger, job_id: str, owner: str, error: Exception) -> None:
    """owner: the worker that met it. Nothing happens if it is the ledger that fails."""
    if isinstance(error, LedgerError):
        return
    story = str(error)
    if not isinstance(error, SdbatchError):
        story = f"unexpected {type(error).__name__}: {story}; the worker's log has more"
    text = " ".join(masked(story).split())
    with contextlib.suppress(LedgerError):
        ledger.note_error(job_id, f"{owner}: {text}"[:LONGEST])
