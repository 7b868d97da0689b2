"""A worker: one process, one model, one engine; shards in, settled images out. No Celery here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from jobs.errors import ExitCode, InputError, NotFoundError, SdbatchError, StoreError, exit_code
from jobs.folder.input_names import read_input_names
from jobs.folder.job_file import read_job_file
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.model_file import pin_model
from jobs.folder.plan import PlanReader
from jobs.formatting import counted
from jobs.ledger.base import Ledger
from jobs.ledger.types import Claim, ClaimAnswer, JobStatus, Shard
from jobs.reuse import EarlierPictures, refresh
from jobs.storage import Store
from sd_core.engine.engine import Engine, EngineClosedError
from worker.faults import DeviceLostError, report_job_error
from worker.logs import masked
from worker.observer import Observer
from worker.output.encoders import Encoder
from worker.output.record import ModelInfo
from worker.render.inputs import Inputs
from worker.render.job import RenderJob
from worker.render.runner import RenderOptions
from worker.render.weight_files import AddedFiles
from worker.serve.heartbeat import LeaseHeartbeat
from worker.serve.isolation import SharedExclusiveLock
from worker.serve.lease import HeldLease, StopReason
from worker.serve.shard import render_shard

log = logging.getLogger(__name__)

JOBS_KEPT = 8  # whose plan parts and inputs stay in memory
STORES_KEPT = 2  # whose earlier pictures stay in memory
PAUSE_S = (5.0, 20.0, 60.0)
"""Seconds of pause after one, two, three or more shards in a row that a store failed: an
unreachable store is not asked again at once. After a failure of one job's own, the pause is the
first of these, for other jobs wait.
"""

STORE_FAILURES = 3
"""Shards in a row that failed because a store is unreachable, after which the worker stops taking
work.
"""


@dataclass(frozen=True)
class Stopped:
    """why: for people, without secrets. code: what the process ends with."""

    why: str
    code: ExitCode


@dataclass(frozen=True)
class _Identity:
    """Facts that make a job the same one: a job that was forgotten and entered again under its name
    may have another plan, or another folder. several: it has other models, too.
    """

    job_id: str
    plan: str
    store: str
    model: str
    several: bool
    created_s: float

    @classmethod
    def of(cls, status: JobStatus, shard: int) -> _Identity:
        """Raises `DamagedLedgerError`."""
        model, several = status.model_of(shard), bool(status.models)
        place = status.job_id, status.plan, status.store
        return cls(*place, model, several, status.created_s)


class Worker:
    """Threads may handle shards at the same time.

    owner: unique to this process.
    on_stop: called once, when the worker stops by itself, with the reason; what it held is about to
        be released.
    encoder: makes the image files. added: finds files of LoRA, embeddings and VAEs.
    grace_s: when it drains, images that end within so long are finished.
    """

    def __init__(
        self,
        owner: str,
        engine: Engine,
        model: ModelInfo,
        ledger: Ledger,
        open_store: Callable[[str], Store],
        *,
        observer: Observer,
        added: AddedFiles,
        heartbeat: LeaseHeartbeat | None = None,
        on_stop: Callable[[Stopped], None] = lambda stopped: None,
        encoder: Encoder | None = None,
        pause_s: tuple[float, ...] = PAUSE_S,
        grace_s: float = 0.0,
    ) -> None:
        self.owner = owner
        self.engine = engine
        self.model = model
        self.ledger = ledger
        self.heartbeat = LeaseHeartbeat(ledger) if heartbeat is None else heartbeat
        self.draining = threading.Event()
        self.stopped: Stopped | None = None
        self._observer = observer
        self._on_stop = on_stop
        self._encoder = encoder or Encoder()
        self._added = added
        self._store_at = lru_cache(maxsize=JOBS_KEPT)(open_store)
        self._earlier_at = lru_cache(maxsize=STORES_KEPT)(self._earlier_in)
        self._loaded = lru_cache(maxsize=JOBS_KEPT)(self._load_job)
        self._pause_s = pause_s
        self._grace_s = grace_s
        self._isolation = SharedExclusiveLock()
        self._store_failed_in_a_row = 0
        self._lock = threading.Lock()  # of the count, and of stopping once

    @property
    def state(self) -> str:
        """idle, busy, compiling, draining, or stopped with why."""
        if self.stopped is not None:
            return f"stopped: {self.stopped.why}"
        if self.draining.is_set():
            return "draining"
        if self.engine.compiling:
            return "compiling"
        return "busy" if self.heartbeat.held_leases else "idle"

    def handle(self, shard: Shard) -> bool:
        """Renders the shard that a message named, if the ledger says so; then forget the message.

        False if this worker takes no more work: the message is for another one. Raises
        `LedgerError` if the ledger is unreachable: then it is not known whether the shard was
        claimed, and its lease runs out if it was.
        """
        with self._isolation.shared():
            claim = self._claim(shard)
            if claim is None or not claim.isolated:
                return self._run(shard, claim)
            # Given back while others run, so that their worker's death is not blamed on it.
            if claim.lease is not None:
                self.ledger.release(claim.lease)
        with self._isolation.exclusive():
            return self._run(shard, self._claim(shard))

    def _claim(self, shard: Shard) -> Claim | None:
        if self.draining.is_set():
            return None
        claim = self.ledger.claim(shard.job_id, shard.number, self.owner)
        self._observer.claimed(claim.answer)
        return claim

    def _run(self, shard: Shard, claim: Claim | None) -> bool:
        if claim is None:
            return False
        if claim.lease is None or claim.answer is not ClaimAnswer.RUN:
            log.info("not rendered: %s", claim.answer)
            return True
        log.info("claimed, %s to do", counted(len(claim.indices), "image"))
        held = HeldLease(claim.lease)
        self.heartbeat.hold(held)
        if self.draining.is_set():  # it may have begun before the heartbeat knew of this
            held.end(StopReason.DRAINING)
        try:
            self._render(shard, claim.indices, held)
        finally:
            self.heartbeat.drop(held)
            if held.why is StopReason.LOST:
                self._observer.lease_lost()
                log.warning("the lease is lost")
        return True

    def drain(self) -> None:
        """Ends all work between two steps, but for what ends within the grace; the rest is saved
        and goes back at once.
        """
        self.draining.set()
        for held in self.heartbeat.held_leases:
            held.end(StopReason.DRAINING)

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

    def _render(self, shard: Shard, indices: tuple[int, ...], held: HeldLease) -> None:
        store = None
        try:
            status = self.ledger.status(shard.job_id)
            store = self._store_at(status.store)
            job, plan = self._loaded(_Identity.of(status, shard.number))
            render_shard(
                plan.tasks(indices),
                held,
                job,
                ledger=self.ledger,
                observer=self._observer,
                options=RenderOptions(
                    priority=status.priority,
                    save=lambda: held.why is StopReason.DRAINING,
                    grace_s=self._grace_s,
                ),
            )
        except (DeviceLostError, EngineClosedError) as error:
            self.stop(Stopped(masked(str(error)), ExitCode.UNEXPECTED))
        except SdbatchError as error:
            log.error("the shard failed: %s", error)
            report_job_error(self.ledger, shard.job_id, self.owner, error)
            held.stop.wait(self._failed(error, store))
        except Exception as error:  # whatever it is, other shards and jobs go on
            log.exception("the shard failed unexpectedly")
            report_job_error(self.ledger, shard.job_id, self.owner, error)
            held.stop.wait(self._pause_s[0])
        else:
            with self._lock:
                self._store_failed_in_a_row = 0
        self._release(held)

    def _failed(self, error: SdbatchError, store: Store | None) -> float:
        """Counts a shard that failed as a whole, and stops if it is one too many; seconds to pause.

        Only stores that are unreachable end a worker. A job whose folder is gone or damaged, or
        that wants other weights, would end all workers one by one; a ledger that is unreachable is
        so for a new process too.
        """
        if not isinstance(error, StoreError) or (store is not None and _works(store)):
            return self._pause_s[0]
        with self._lock:
            self._store_failed_in_a_row += 1
            failed = self._store_failed_in_a_row
        if failed >= STORE_FAILURES:
            why = f"{failed} shards in a row failed: {masked(str(error))}"
            self.stop(Stopped(why, exit_code(error)))
        return self._pause_s[min(failed, len(self._pause_s)) - 1]

    def _release(self, held: HeldLease) -> None:
        lease = held.lease
        # The last steps since the last heartbeat, which a person watching would miss.
        work = self.heartbeat.take_work(held)
        self.ledger.heartbeat([lease], [work.evaluated], [work.worked_s])
        left = self.ledger.release(lease)
        log.info("released, %s left", counted(left, "image"))

    def _earlier_in(self, address: str) -> EarlierPictures:
        return EarlierPictures(self._store_at(address))

    def _load_job(self, identity: _Identity) -> tuple[RenderJob, PlanReader]:
        """Raises `InputError` if the job wants another model, `NotFoundError`, `StoreError`."""
        if identity.model != self.model.name:
            raise InputError(f"it wants model {identity.model}, this worker has {self.model.name}")
        folder = JobFolder(self._store_at(identity.store), JobKeys(identity.job_id))
        if folder.head(folder.keys.plan_part(0)) is None:
            raise NotFoundError(f"{folder.url} has no plan")
        of = identity.model if identity.several else None
        pin_model(folder, self.model.name, self.model.digest, of=of)
        described = read_job_file(folder)
        inputs = Inputs(folder)
        earlier = None
        if described.reuse:
            earlier = self._earlier_at(identity.store)
            refresh(earlier)
        job = RenderJob(
            *(folder, described, self.engine, self.model, inputs, self._added, self._encoder),
            input_names=read_input_names(folder),
            earlier=earlier,
        )
        return job, PlanReader(folder)


def _works(store: Store) -> bool:
    """True if the store itself answers: then a failure was of one job's folder."""
    try:
        store.check_writable()
    except StoreError:
        return False
    return True
