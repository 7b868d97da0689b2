"""A worker: one process, one model, one engine; messages in, settled shards out. No Celery here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import lru_cache

from jobs.errors import InputError, NotFoundError, SdbatchError
from jobs.ledger.base import ClaimAnswer, JobStatus, Ledger, Shard
from jobs.pin import pin_model
from jobs.plan import PlanReader
from jobs.queue import from_message
from jobs.storage import JobKeys, Store
from sd_core.engine import Engine
from worker.finish import Finisher, ShardRecords
from worker.heart import Heart
from worker.inputs import Inputs
from worker.record import ModelInfo
from worker.shard import Holding, StopReason, render_shard

log = logging.getLogger(__name__)

JOBS_KEPT = 8  # whose plan parts and inputs stay in memory
PAUSE_S = (5.0, 20.0, 60.0)
"""After one, two, three or more shards in a row that failed as a whole: a store that is away is not
asked again at once."""


class _Job:
    """What a worker keeps of a job."""

    def __init__(self, status: JobStatus, store: Store) -> None:
        self.status = status
        self.store = store
        self.keys = JobKeys(status.job_id)
        self.plan = PlanReader(store, self.keys)
        self.inputs = Inputs(store, self.keys)


class Worker:
    """owner: unique to this process. Threads may handle messages at the same time."""

    def __init__(
        self,
        owner: str,
        engine: Engine,
        model: ModelInfo,
        ledger: Ledger,
        open_store: Callable[[str], Store],
        *,
        heart: Heart | None = None,
        pause_s: tuple[float, ...] = PAUSE_S,
    ) -> None:
        self.owner = owner
        self.engine = engine
        self.model = model
        self.ledger = ledger
        self.heart = Heart(ledger) if heart is None else heart
        self.draining = threading.Event()
        self._open_store = open_store
        self._job = lru_cache(maxsize=JOBS_KEPT)(self._load_job)
        self._pause_s = pause_s
        self._failed_in_a_row = 0
        self.images = 0  # settled since this worker began

    def handle(self, message: object) -> None:
        """Renders the shard that a message names, if the ledger says so; then forget the message.

        Raises `InputError` for a message that is none, `LedgerError` if the ledger is away: then
        it is not known whether the shard was claimed, and its lease runs out if it was.
        """
        shard = from_message(message)
        if self.draining.is_set():
            return  # unclaimed, so the ledger publishes it again
        claim = self.ledger.claim(shard.job_id, shard.number, self.owner)
        if claim.lease is None or claim.answer is not ClaimAnswer.RUN:
            log.info("job %s shard %d: %s", shard.job_id, shard.number, claim.answer)
            return
        holding = Holding(claim.lease)
        self.heart.hold(holding)
        if self.draining.is_set():  # it may have begun before the heart knew of this
            holding.end(StopReason.DRAINING)
        try:
            self._render(shard, claim.indices, holding)
        finally:
            self.heart.drop(holding)

    def drain(self) -> None:
        """Ends all work between two steps; unfinished images go back at once."""
        self.draining.set()
        for holding in self.heart.holdings:
            holding.end(StopReason.DRAINING)

    def _render(self, shard: Shard, indices: tuple[int, ...], holding: Holding) -> None:
        try:
            job = self._job(shard.job_id)
            records = ShardRecords(job.store, job.keys, shard.number)
            self.images += render_shard(
                job.plan.tasks(indices),
                holding,
                engine=self.engine,
                finisher=Finisher(
                    job.store, job.keys, self.model, records, quality=job.status.quality
                ),
                records=records,
                inputs=job.inputs,
                ledger=self.ledger,
            )
        except SdbatchError as error:
            self._failed_in_a_row += 1
            log.error("job %s shard %d: %s", shard.job_id, shard.number, error)
            pause_s = self._pause_s[min(self._failed_in_a_row, len(self._pause_s)) - 1]
            holding.stop.wait(pause_s)
        else:
            self._failed_in_a_row = 0
        self._release(holding)

    def _release(self, holding: Holding) -> None:
        lease = holding.lease
        # The last steps since the heart beat, which a person watching would miss.
        self.ledger.heartbeat([lease], [holding.take_evaluated()])
        left = self.ledger.release(lease)
        log.info("job %s shard %d: released, %d images left", lease.job_id, lease.shard, left)

    def _load_job(self, job_id: str) -> _Job:
        status = self.ledger.status(job_id)
        if status.model != self.model.name:
            raise InputError(f"it wants model {status.model}, this worker has {self.model.name}")
        store = self._open_store(status.store)
        if store.head(JobKeys(job_id).plan_part(0)) is None:
            raise NotFoundError(f"{store.url(job_id)} has no plan")
        pin_model(store, JobKeys(job_id), self.model.name, self.model.digest)
        return _Job(status, store)
