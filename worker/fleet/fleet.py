"""Several workers on one machine: a process for each, started again when it dies.

No torch and no CUDA here. A worker is a new program with its own environment, not a fork: CUDA
reads CUDA_VISIBLE_DEVICES once, and does not survive a fork.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from jobs.errors import InputError, Interrupted
from jobs.formatting import counted
from jobs.settings import Settings
from jobs.supervise.process import PipedProcess
from jobs.supervise.restarts import HOPELESS, Restarts
from jobs.supervise.signals import Interrupts
from worker import logs
from worker.fleet.gpus import Place, choose

log = logging.getLogger(__name__)

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
"""Before a worker is started again, after one, two, … quick deaths in a row."""

STEADY_S = 300.0
"""A worker that lived so long did not die quickly."""

WORKER = (sys.executable, "-P", "-m", "jobs.cli", "worker")

POLL_S = 0.1


class FleetWorker:
    """One worker process after the other at one place."""

    def __init__(self, process: PipedProcess) -> None:
        self.name = process.name
        self.process = process
        self.restarts = Restarts(PAUSES_S, STEADY_S)
        self.running = False
        """True while there is a process whose end nobody has seen yet."""

    def start(self) -> None:
        self.process.start()
        self.running = True
        self.restarts.alive()

    def take_end(self) -> int | None:
        """The exit code, once, when the process has ended; minus the signal that ended it."""
        if not self.running or (code := self.process.exit_code) is None:
            return None
        self.process.drain()
        self.running = False
        return code

    def pause(self) -> float:
        """Count a death; seconds until it is due again."""
        self.restarts.died()
        return self.restarts.pause()

    def stop(self) -> None:
        if self.running:
            self.process.send(signal.SIGTERM)


class Fleet:
    """All workers, from start to end."""

    def __init__(self, workers: Sequence[FleetWorker]) -> None:
        self._workers = workers
        self._wanted = set(workers)  # those that are not over
        self._stopping = False
        self._code = 0

    def run(self) -> int:
        """Returns when every worker has ended for good. 0 if that was wanted, else the exit code
        of the first one that failed.

        The first SIGTERM, SIGINT or SIGHUP is passed on, and the workers end in their own time.
        Raises `Interrupted` at the second, when all are killed.
        """
        interrupts = Interrupts()
        with interrupts.counting():
            try:
                for worker in self._workers:
                    worker.start()
                while self._wanted:
                    if interrupts.count > 1:
                        raise Interrupted("killed; what was not stored yet is rendered again")
                    if interrupts.count and not self._stopping:
                        log.info("stopping %s", counted(len(self._wanted), "worker"))
                        self._stop()
                    for worker in tuple(self._wanted):
                        self._look(worker)
                    time.sleep(POLL_S)
            finally:
                for worker in self._workers:
                    worker.process.kill()
        return self._code

    def _look(self, worker: FleetWorker) -> None:
        code = worker.take_end()
        if code is not None:
            self._ended(worker, code)
        elif not worker.running and (self._stopping or worker.restarts.due()):
            if self._stopping:
                self._wanted.discard(worker)
            else:
                log.info("%s is started again", worker.name)
                worker.start()

    def _ended(self, worker: FleetWorker, code: int) -> None:
        how = f"exit code {code}" if code >= 0 else f"signal {-code}, {signal.strsignal(-code)}"
        # A worker that is still loading its model ends by the signal itself.
        if code == 0 or (self._stopping and code == -signal.SIGTERM):
            log.info("%s has ended", worker.name)
            self._wanted.discard(worker)
        elif self._stopping or code in HOPELESS:
            log.error("%s failed (%s)", worker.name, how)
            self._wanted.discard(worker)
            self._code = self._code or (code if code > 0 else 128 - code)
            self._stop()
        else:
            log.warning("%s died (%s); again in %.0f s", worker.name, how, worker.pause())

    def _stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            for worker in self._workers:
                worker.stop()


def run_workers(
    gpus: str, settings: Settings, environ: Mapping[str, str], command: Sequence[str] = WORKER
) -> int:
    """Run a worker on each chosen GPU, as `sdbatch worker --gpus` does.

    gpus: see `worker.fleet.gpus.choose`.
    environ: of the workers.

    Returns the exit code. Raises `InputError` before anything starts, and `Interrupted`.
    """
    places = choose(gpus, environ)
    settings.model(settings.worker_model)
    environs = worker_environs(places, settings.metrics, environ)
    logs.set_up(settings.log, f"fleet-{os.getpid()}")
    # A prefix would spoil JSON, where each line names its worker anyway.
    prefixed = settings.log != "json"
    workers = [
        FleetWorker(
            PipedProcess(
                place.name,
                command,
                _to_stderr(place.name if prefixed else None),
                environ=theirs,
            )
        )
        for place, theirs in zip(places, environs, strict=True)
    ]
    return Fleet(workers).run()


def worker_environs(
    places: Sequence[Place], metrics: tuple[str, int] | None, environ: Mapping[str, str]
) -> list[dict[str, str]]:
    """The environment of each worker. metrics: host and port of the first; the others' ports
    follow.

    Raises `InputError` if there are not that many ports.
    """
    environs = [{**environ, **place.environ} for place in places]
    if metrics is not None:
        host, first = metrics
        if first + len(places) > 2**16:
            raise InputError(
                f"SDBATCH_METRICS: found port {first}, expected at most {2**16 - len(places)}: "
                f"{counted(len(places), 'worker')} with a port each, one after the other"
            )
        shown = f"[{host}]" if ":" in host else host
        for position, theirs in enumerate(environs):
            theirs["SDBATCH_METRICS"] = f"{shown}:{first + position}"
    return environs


def _to_stderr(name: str | None) -> Callable[[bytes], None]:
    prefix = b"" if name is None else f"[{name}] ".encode()

    def write(line: bytes) -> None:
        with contextlib.suppress(OSError):  # a worker must not wait for a reader who is gone
            sys.stderr.buffer.write(prefix + line)
            sys.stderr.buffer.flush()

    return write
