"""The queue's edge: decode, delegate, translate errors. No diffusion here."""

from __future__ import annotations

import logging

from jobs.errors import InputError, LedgerError
from jobs.queue import TASK, from_message
from worker import lifecycle, logs
from worker.app import app

log = logging.getLogger(__name__)


@app.task(name=TASK)
def render_shard(message: object) -> None:
    """Renders the shard that the message names, if nobody has."""
    try:
        shard = from_message(message)
    except InputError as error:
        log.error("message refused: %s", error)
        return
    with logs.context(job=shard.job_id, shard=shard.number):
        try:
            lifecycle.worker().handle(shard)
        except LedgerError as error:
            # Nothing is lost: the lease runs out, or the shard is found unclaimed.
            log.error("shard left to the ledger: %s", error)
