"""From start to end of a worker process: model, engine, heart, reconciler, and how it drains."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
import threading
from dataclasses import dataclass

from jobs.errors import LedgerError, SdbatchError, exit_code
from jobs.ledger import open_ledger
from jobs.ledger.base import Ledger, WorkerInfo
from jobs.queue import CeleryQueue
from jobs.settings import Settings
from jobs.storage import open_store
from sd_core.engine import Engine
from worker.heart import Heart
from worker.local import ModelChoice, load
from worker.reconcile import Reconciler
from worker.record import ModelInfo
from worker.service import Worker

log = logging.getLogger(__name__)

SLOTS = 2
"""Shards that a worker has at a time: while one is stored, the other renders."""

REPORT_EVERY_S = 5.0
SEEN_S = 20.0  # a worker that does not report for so long is taken off the list


@dataclass
class _Life:
    worker: Worker
    ledger: Ledger
    threads: list[threading.Thread]
    stop: threading.Event


_life: _Life | None = None


def worker() -> Worker:
    """The worker of this process. Raises `RuntimeError` before `start`."""
    if _life is None:
        raise RuntimeError("this process has no worker yet")
    return _life.worker


def start(settings: Settings) -> None:
    """Loads the model and starts all threads; ends the process with an exit code if it cannot."""
    global _life
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    try:
        _life = _begin(settings)
    except SdbatchError as error:
        log.error("%s", error)
        # Not an exception: Celery would log it and go on without a model.
        sys.exit(exit_code(error))


def _begin(settings: Settings) -> _Life:
    ledger = open_ledger(settings.redis, lease_s=settings.lease_s)
    ledger.ping()
    name = settings.worker_model
    source = settings.model(name)
    choice = ModelChoice(
        name, source.source, source.digest, device=settings.device, dtype=settings.dtype
    )
    model = load(choice)
    revision = None if model.provenance is None else model.provenance.revision
    info = ModelInfo(name, model.digest, source.source, revision)
    owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    heart = Heart(ledger, every_s=settings.lease_s / 4, lease_s=settings.lease_s)
    worker = Worker(owner, Engine(model), info, ledger, open_store, heart=heart)
    stop = threading.Event()
    reconciler = Reconciler(
        ledger, CeleryQueue(settings.redis), open_store, owner=owner, slots=SLOTS
    )
    threads = [
        threading.Thread(target=heart.run, args=(stop,), name="sdbatch-heart", daemon=True),
        threading.Thread(
            target=reconciler.run, args=(stop,), name="sdbatch-reconcile", daemon=True
        ),
        threading.Thread(target=_report, args=(worker, stop), name="sdbatch-report", daemon=True),
    ]
    for thread in threads:
        thread.start()
    log.info("worker %s has model %s on %s", owner, name, model.device)
    return _Life(worker, ledger, threads, stop)


def _report(worker: Worker, stop: threading.Event) -> None:
    """Says in the ledger who is here and what it does."""
    while True:
        held = len(worker.heart.holdings)
        state = "draining" if worker.draining.is_set() else "busy" if held else "idle"
        info = WorkerInfo(
            name=worker.owner,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=str(worker.engine.model.device),
            model=worker.model.name,
            leases=held,
            images=worker.images,
            state=state,
        )
        with contextlib.suppress(LedgerError):  # it is told again in a few seconds
            worker.ledger.worker_seen(info, SEEN_S)
        if stop.wait(REPORT_EVERY_S):
            return


def drain() -> None:
    """Ends all work between two steps and gives shards back; safe in a signal handler."""
    if _life is not None:
        threading.Thread(target=_life.worker.drain, name="sdbatch-drain").start()


def stop() -> None:
    """Ends the threads and the engine."""
    global _life
    life, _life = _life, None
    if life is None:
        return
    life.stop.set()
    for thread in life.threads:
        thread.join(timeout=SEEN_S)
    life.worker.engine.close(cancel=True)
    with contextlib.suppress(LedgerError):
        life.ledger.worker_gone(life.worker.owner)
