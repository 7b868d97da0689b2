"""The queue's edge: decode, delegate, translate errors. No diffusion here."""

from __future__ import annotations

import logging

from celery.exceptions import Reject

from jobs.errors import InputError, LedgerError
from jobs.queue.messages import TASK, from_message
from worker import logs, process
from worker.app import app

log = logging.getLogger(__name__)


@app.task(name=TASK)
def render_shard(message: object) -> None:
    """Renders the shard that the message names, if nobody has. Raises `Reject` to give it back."""
    try:
        shard = from_message(message)
    except InputError as error:
        log.error("message refused: %s", error)
        return
    with logs.context(job=shard.job_id, shard=shard.number):
        try:
            taken = process.worker().handle(shard)
        except LedgerError as error:
            # Nothing is lost: the lease runs out, or the shard is found unclaimed.
            log.error("shard left to the ledger: %s", error)
            return
    if not taken:
        # Acknowledged, it would be missed only after a while, and its shard wait so long.
        raise Reject("no more work is taken", requeue=True)
