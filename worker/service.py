"""A worker: one process, one model, one engine; shards in, settled images out. No Celery here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from jobs.errors import ExitCode, InputError, NotFoundError, SdbatchError, StoreError, exit_code
from jobs.ledger.base import Claim, ClaimAnswer, JobStatus, Ledger, Shard
from jobs.pin import pin_model
from jobs.plan import PlanReader
from jobs.storage import JobKeys, Store
from sd_core.engine import Engine, EngineClosedError
from worker.faults import DeviceLostError
from worker.finish import Finisher, ShardRecords
from worker.heart import Heart
from worker.inputs import Inputs
from worker.logs import masked
from worker.metrics import Metrics
from worker.record import ModelInfo
from worker.shard import Holding, StopReason, render_shard
from worker.turns import Turns

log = logging.getLogger(__name__)

JOBS_KEPT = 8  # whose plan parts and inputs stay in memory
PAUSE_S = (5.0, 20.0, 60.0)
"""After one, two, three or more shards in a row that failed as a whole: a store that is away is not
asked again at once."""

STORE_FAILURES = 3
"""Shards in a row that failed because of the store, after which the worker stops taking work."""


@dataclass(frozen=True)
class Stopped:
    """why: for people, without secrets. code: what the process ends with."""

    why: str
    code: ExitCode


class _Job:
    """What a worker keeps of a job."""

    def __init__(self, status: JobStatus, store: Store) -> None:
        self.status = status
        self.store = store
        self.keys = JobKeys(status.job_id)
        self.plan = PlanReader(store, self.keys)
        self.inputs = Inputs(store, self.keys)


class Worker:
    """owner: unique to this process. on_stop: called once, when the worker stops by itself, with
    the reason; what it held is about to be released. Threads may handle shards at the same time.
    """

    def __init__(
        self,
        owner: str,
        engine: Engine,
        model: ModelInfo,
        ledger: Ledger,
        open_store: Callable[[str], Store],
        *,
        metrics: Metrics,
        heart: Heart | None = None,
        on_stop: Callable[[Stopped], None] = lambda stopped: None,
        pause_s: tuple[float, ...] = PAUSE_S,
    ) -> None:
        self.owner = owner
        self.engine = engine
        self.model = model
        self.ledger = ledger
        self.heart = Heart(ledger) if heart is None else heart
        self.draining = threading.Event()
        self.stopped: Stopped | None = None
        self._metrics = metrics
        self._on_stop = on_stop
        self._open_store = open_store
        self._job = lru_cache(maxsize=JOBS_KEPT)(self._load_job)
        self._pause_s = pause_s
        self._turns = Turns()
        self._failed_in_a_row = 0
        self._store_failed_in_a_row = 0
        self._lock = threading.Lock()  # of the two counts, and of stopping once
        self.images = 0  # settled since this worker began

    @property
    def state(self) -> str:
        """idle, busy, draining, or stopped with why."""
        if self.stopped is not None:
            return f"stopped: {self.stopped.why}"
        if self.draining.is_set():
            return "draining"
        return "busy" if self.heart.holdings else "idle"

    def handle(self, shard: Shard) -> None:
        """Renders the shard that a message named, if the ledger says so; then forget the message.

        Raises `LedgerError` if the ledger is away: then it is not known whether the shard was
        claimed, and its lease runs out if it was.
        """
        with self._turns.together():
            claim = self._claim(shard)
            if claim is None or not claim.alone:
                return self._run(shard, claim)
            # Given back while others run, so that their worker's death is not blamed on it.
            if claim.lease is not None:
                self.ledger.release(claim.lease)
        with self._turns.alone():
            return self._run(shard, self._claim(shard))

    def _claim(self, shard: Shard) -> Claim | None:
        if self.draining.is_set():
            return None  # unclaimed, so the ledger publishes it again
        claim = self.ledger.claim(shard.job_id, shard.number, self.owner)
        self._metrics.claimed(claim.answer)
        return claim

    def _run(self, shard: Shard, claim: Claim | None) -> None:
        if claim is None:
            return
        if claim.lease is None or claim.answer is not ClaimAnswer.RUN:
            log.info("not rendered: %s", claim.answer)
            return
        log.info("claimed, %d images to do", len(claim.indices))
        holding = Holding(claim.lease)
        self.heart.hold(holding)
        if self.draining.is_set():  # it may have begun before the heart knew of this
            holding.end(StopReason.DRAINING)
        try:
            self._render(shard, claim.indices, holding)
        finally:
            self.heart.drop(holding)
            if holding.why is StopReason.LOST:
                self._metrics.lease_lost()
                log.warning("the lease is lost")

    def drain(self) -> None:
        """Ends all work between two steps; unfinished images go back at once."""
        self.draining.set()
        for holding in self.heart.holdings:
            holding.end(StopReason.DRAINING)

    def stop(self, stopped: Stopped) -> None:
        """Takes no more work and gives back what it has, for a reason that a new process may not
        have. The first reason counts.
        """
        with self._lock:
            if self.stopped is not None:
                return
            self.stopped = stopped
        log.error("stopped: %s", stopped.why)
        self.drain()
        self._on_stop(stopped)

    def _render(self, shard: Shard, indices: tuple[int, ...], holding: Holding) -> None:
        try:
            job = self._job(shard.job_id)
            records = ShardRecords(job.store, job.keys, shard.number)
            self.images += render_shard(
                job.plan.tasks(indices),
                holding,
                engine=self.engine,
                finisher=Finisher(
                    job.store,
                    job.keys,
                    self.model,
                    records,
                    quality=job.status.quality,
                    meter=self._metrics,
                ),
                records=records,
                inputs=job.inputs,
                ledger=self.ledger,
                meter=self._metrics,
            )
        except (DeviceLostError, EngineClosedError) as error:
            self.stop(Stopped(masked(str(error)), ExitCode.UNEXPECTED))
        except SdbatchError as error:
            log.error("the shard failed: %s", error)
            holding.stop.wait(self._failed(error))
        else:
            with self._lock:
                self._failed_in_a_row = self._store_failed_in_a_row = 0
        self._release(holding)

    def _failed(self, error: SdbatchError) -> float:
        """Counts a shard that failed as a whole, and stops if it is one too many; seconds to pause.

        Only the store's failures end a worker. A job whose folder is gone, or that wants other
        weights, would end all workers one by one; a ledger that is away is away for a new process
        too.
        """
        with self._lock:
            self._failed_in_a_row += 1
            if isinstance(error, StoreError):
                self._store_failed_in_a_row += 1
            failed, by_store = self._failed_in_a_row, self._store_failed_in_a_row
        if by_store >= STORE_FAILURES:
            why = f"{by_store} shards in a row failed: {masked(str(error))}"
            self.stop(Stopped(why, exit_code(error)))
        return self._pause_s[min(failed, len(self._pause_s)) - 1]

    def _release(self, holding: Holding) -> None:
        lease = holding.lease
        # The last steps since the heart beat, which a person watching would miss.
        self.ledger.heartbeat([lease], [holding.take_evaluated()])
        left = self.ledger.release(lease)
        log.info("released, %d images left", left)

    def _load_job(self, job_id: str) -> _Job:
        status = self.ledger.status(job_id)
        if status.model != self.model.name:
            raise InputError(f"it wants model {status.model}, this worker has {self.model.name}")
        store = self._open_store(status.store)
        if store.head(JobKeys(job_id).plan_part(0)) is None:
            raise NotFoundError(f"{store.url(job_id)} has no plan")
        pin_model(store, JobKeys(job_id), self.model.name, self.model.digest)
        return _Job(status, store)
