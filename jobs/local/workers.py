"""The cluster's workers, each started again when it dies."""

from __future__ import annotations

import enum
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from jobs.local.display import Display
from jobs.supervise.process import LoggedProcess
from jobs.supervise.restarts import HOPELESS, Restarts

PAUSES_S = (1.0, 2.0, 4.0, 8.0)
"""After one, two, … quick deaths in a row; one more, and the worker is given up."""

STEADY_S = 60.0
"""A worker that lived so long after it was ready did not die quickly."""


class Stage(enum.Enum):
    """Where a worker is on its way."""

    LOADING = "loading"
    READY = "ready"
    PAUSING = "pausing"  # died, and is to be started again
    GIVEN_UP = "given up"


class LocalWorker:
    """A worker and its deaths. show: told of every change that people want to know."""

    def __init__(
        self,
        process: LoggedProcess,
        show: Display,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.process = process
        self.stage = Stage.LOADING
        self._show = show
        self._restarts = Restarts(PAUSES_S, STEADY_S, clock=clock)
        process.start()

    def look(self, ready: Collection[int]) -> None:
        """Takes note of what happened. ready: process ids of the workers that the ledger knows."""
        if self.stage is Stage.PAUSING and self._restarts.due():
            self.process.start()
            self.stage = Stage.LOADING
        elif self.stage in (Stage.LOADING, Stage.READY):
            if not self.process.running:
                self._died()
            elif self.stage is Stage.LOADING and self.process.pid in ready:
                self.stage = Stage.READY
                self._restarts.alive()
                self._show.done(self.process.name, f"process {self.process.pid}")

    def _died(self) -> None:
        process = self.process
        how = f"{process.name} ended ({process.how_it_ended()})"
        if self._restarts.died() or process.exit_code in HOPELESS:
            self.stage = Stage.GIVEN_UP
            log_end = f"the end of {process.log}:\n{process.log_end()}"
            self._show.warn(f"{how} and is given up; {log_end}")
            return
        self.stage = Stage.PAUSING
        pause_s = self._restarts.pause()
        self._show.warn(f"{how}; started again in {pause_s:.0f} s, see {process.log}")


def worker_process(
    number: int, model: str, logs: Path, environ: Mapping[str, str]
) -> LoggedProcess:
    """number: from 1."""
    return LoggedProcess(
        f"worker {number}",
        [sys.executable, "-P", "-m", "jobs.cli", "worker", "--model", model],
        logs / f"worker-{number}.log",
        environ=environ,
        # By SIGTERM it would try to hand back its images to a ledger that is going away, too.
        dies_by=signal.SIGKILL,
    )


def worker_environ(
    environ: Mapping[str, str], *, redis: str, store: str, s3: Mapping[str, str], workers: int
) -> dict[str, str]:
    """Environment that leads workers to the cluster, and to nothing else. s3: AWS_* variables."""
    kept = {name: value for name, value in environ.items() if not name.startswith("AWS_")}
    if workers > 1:
        kept.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
        kept.pop("SDBATCH_METRICS", None)  # one address for all of them
    for name in ("no_proxy", "NO_PROXY"):
        kept[name] = ",".join(filter(None, [environ.get(name), "127.0.0.1"]))
    return kept | {"SDBATCH_REDIS": redis, "SDBATCH_STORE": store, **s3}
