"""A worker process from start to end: model, engine, heartbeat, reconciler; how it drains."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import secrets
import socket
import sys
import threading
from dataclasses import dataclass, field

from celery.worker import state as celery_state

from jobs.errors import ExitCode, LedgerError, SdbatchError, exit_code
from jobs.ledger import open_ledger
from jobs.ledger.base import Ledger
from jobs.queue.messages import CeleryQueue
from jobs.settings import Settings
from jobs.storage.addresses import opener
from jobs.supervise.deferred import Deferred
from sd_core.engine.engine import Engine
from worker.checkpoint.load import ModelChoice, load
from worker.monitor.health import Health, Monitor
from worker.monitor.metrics import Metrics
from worker.monitor.presence import SEEN_S, Reporter
from worker.output.encoders import encoder
from worker.output.record import ModelInfo
from worker.reconcile.reconciler import Reconciler
from worker.reconcile.webhooks import Notifier
from worker.render.weight_files import AddedFiles
from worker.serve.heartbeat import LeaseHeartbeat
from worker.serve.worker import Stopped, Worker

log = logging.getLogger(__name__)

SLOTS = 4
"""Shards that a worker has at a time: while some are stored, others render. With 300 ms for a PUT,
two of them left the engine without work for 8 % of the time, four for 1 %.
"""

END_WITHIN_S = 60.0
"""A worker that stopped by itself gives back what it has for so long, then ends all the same."""


@dataclass
class _Life:
    worker: Worker
    ledger: Ledger
    threads: list[threading.Thread]
    stop: threading.Event
    monitor: Monitor | None
    encoding: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        self.draining = Deferred(self.worker.drain, "sdbatch-drain")


_life: _Life | None = None


def worker() -> Worker:
    """The worker of this process. Raises `RuntimeError` before `start`."""
    if _life is None:
        raise RuntimeError("this process has no worker yet")
    return _life.worker


def new_owner() -> str:
    """A name for a worker that no other has, ever."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def start(settings: Settings, owner: str) -> None:
    """Loads the model and starts all threads; ends the process with an exit code if it cannot."""
    global _life
    try:
        _life = _begin(settings, owner)
    except SdbatchError as error:
        log.error("%s", error)
        # Not an exception: Celery would log it and go on without a model.
        sys.exit(exit_code(error))
    except Exception:
        log.exception("the worker cannot start")
        sys.exit(ExitCode.UNEXPECTED)


def _begin(settings: Settings, owner: str) -> _Life:
    name = settings.worker_model
    open_store = opener(settings.stores)
    metrics, health = Metrics(name), Health(name)
    # First of all, for a model may take minutes to load.
    monitor = (
        None if settings.metrics is None else Monitor(settings.metrics, metrics.registry, health)
    )
    ledger = open_ledger(settings.redis, lease_s=settings.lease_s)
    ledger.ping()
    if (warning := ledger.eviction()) is not None:
        log.warning("%s", warning)
    source = settings.model(name)
    model = load(ModelChoice.of(name, source, settings))
    info = ModelInfo.of(name, source.source, model.provenance)
    heartbeat = LeaseHeartbeat(ledger, every_s=settings.lease_s / 4, lease_s=settings.lease_s)
    engine = Engine(model, on_batch=metrics.evaluated)
    health.starting = "compiling"
    _compile_ahead(engine)
    encoding = contextlib.ExitStack()
    files = encoding.enter_context(encoder(model.device.type))
    worker = Worker(
        owner,
        engine,
        info,
        ledger,
        open_store,
        observer=metrics,
        added=AddedFiles.of(settings, settings.cache),
        heartbeat=heartbeat,
        on_stop=_end,
        encoder=files,
        grace_s=settings.grace_s,
    )
    reporter = Reporter(worker, metrics)
    metrics.describe(
        owner=owner,
        model=name,
        digest=model.digest,
        device=str(model.device),
        version=importlib.metadata.version("sdbatch"),
    )
    metrics.watch(engine, leases=lambda: len(heartbeat.held_leases))
    stop = threading.Event()
    reconciler = Reconciler(
        ledger,
        CeleryQueue(settings.redis),
        open_store,
        owner=owner,
        slots=SLOTS,
        notifier=Notifier(
            ledger, secret=settings.webhook_secret, allow_private=settings.webhook_private
        ),
    )
    threads = [
        threading.Thread(target=heartbeat.run, args=(stop,), name="sdbatch-heartbeat", daemon=True),
        threading.Thread(
            target=reconciler.run, args=(stop,), name="sdbatch-reconcile", daemon=True
        ),
        threading.Thread(target=reporter.run, args=(stop,), name="sdbatch-report", daemon=True),
    ]
    for thread in threads:
        thread.start()
    health.watch(worker, reporter, threads)
    log.info("worker %s has model %s on %s", owner, name, model.device)
    return _Life(worker, ledger, threads, stop, monitor, encoding)


def _compile_ahead(engine: Engine) -> None:
    """Before work is taken: its first images would wait."""
    try:
        engine.compile_ahead()
    except (ArithmeticError, RuntimeError, MemoryError) as error:
        # Jobs of a size that fits may come all the same; others fail image by image.
        log.warning("an image of the model's native size cannot be rendered here: %s", error)


def drain() -> None:
    """Ends all work between two steps and gives shards back; safe in a signal handler."""
    if _life is not None:
        _life.draining.ask()


def _end(stopped: Stopped) -> None:
    """Ends the process: Celery's loop sees the code within seconds and shuts down as on SIGTERM."""
    celery_state.should_stop = stopped.code

    def insist() -> None:
        threading.Event().wait(END_WITHIN_S)
        log.critical("not ended after %.0f s: ending at once", END_WITHIN_S)
        os._exit(stopped.code)

    threading.Thread(target=insist, name="sdbatch-end", daemon=True).start()


def stop(code: int | None = 0) -> None:
    """Ends the threads and the engine. Raises `SystemExit` if the worker stopped by itself or
    Celery failed, for not everything that starts Celery passes its exit code on.

    code: what Celery would end with; 0 if it was told to stop.
    """
    global _life
    life, _life = _life, None
    if life is None:
        return
    life.draining.close()
    life.stop.set()
    for thread in life.threads:
        thread.join(timeout=SEEN_S)
    if life.monitor is not None:
        life.monitor.close()
    life.worker.engine.close(cancel=True)
    life.encoding.close()
    stopped = life.worker.stopped
    if stopped is not None:
        # It stays on the list for a while, with the reason.
        sys.exit(stopped.code)
    with contextlib.suppress(LedgerError):
        life.ledger.worker_gone(life.worker.owner)
    if code != 0 and not life.worker.draining.is_set():
        # With 0, a supervisor would take it for the wanted end.
        log.critical("ended without being told to")
        sys.exit(ExitCode.UNEXPECTED)
