"""The queue's edge: decode, delegate, translate errors. No diffusion here."""

from __future__ import annotations

import logging

from jobs.errors import InputError, LedgerError
from jobs.queue import TASK
from worker import lifecycle
from worker.app import app

log = logging.getLogger(__name__)


@app.task(name=TASK)
def render_shard(message: object) -> None:
    """Renders the shard that the message names, if nobody has."""
    try:
        lifecycle.worker().handle(message)
    except InputError as error:
        log.error("message refused: %s", error)
    except LedgerError as error:
        # Nothing is lost: the lease runs out, or the shard is found unclaimed.
        log.error("shard left to the ledger: %s", error)
