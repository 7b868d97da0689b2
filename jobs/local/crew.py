"""The cluster's workers, each started again when it dies."""

from __future__ import annotations

import enum
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from jobs.errors import ExitCode
from jobs.local.display import Display
from jobs.local.process import Part

PAUSES_S = (1.0, 2.0, 4.0, 8.0)
"""After one, two, … quick deaths in a row; one more, and the worker is given up."""

STEADY_S = 60.0
"""A worker that lived so long after it was ready did not die quickly."""

HOPELESS = (ExitCode.BAD_INPUT, ExitCode.MODEL)
"""How a worker ends that would end so again: a setting is wrong, or the model cannot be loaded."""


class Stage(enum.Enum):
    """Where a worker is on its way."""

    LOADING = "loading"
    READY = "ready"
    PAUSING = "pausing"  # died, and is to be started again
    GIVEN_UP = "given up"


class CrewMember:
    """A worker and its deaths. show: told of every change that people want to know."""

    def __init__(
        self,
        part: Part,
        show: Display,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.part = part
        self.stage = Stage.LOADING
        self._show = show
        self._clock = clock
        self._deaths = 0
        self._since_s = 0.0  # ready, or to be started again at
        part.start()

    def look(self, ready: Collection[int]) -> None:
        """Takes note of what happened. ready: process ids of the workers that the ledger knows."""
        if self.stage is Stage.PAUSING and self._clock() >= self._since_s:
            self.part.start()
            self.stage = Stage.LOADING
        elif self.stage in (Stage.LOADING, Stage.READY):
            if not self.part.running:
                self._died()
            elif self.stage is Stage.LOADING and self.part.pid in ready:
                self.stage = Stage.READY
                self._since_s = self._clock()
                self._show.done(self.part.name, f"process {self.part.pid}")

    def _died(self) -> None:
        how = f"{self.part.name} ended ({self.part.how_it_ended()})"
        if self.stage is Stage.READY and self._clock() - self._since_s >= STEADY_S:
            self._deaths = 0
        if self._deaths >= len(PAUSES_S) or self.part.exit_code in HOPELESS:
            self.stage = Stage.GIVEN_UP
            log_end = f"the end of {self.part.log}:\n{self.part.log_end()}"
            self._show.warn(f"{how} and is given up; {log_end}")
            return
        pause_s = PAUSES_S[self._deaths]
        self._deaths += 1
        self._since_s = self._clock() + pause_s
        self.stage = Stage.PAUSING
        self._show.warn(f"{how}; started again in {pause_s:.0f} s, see {self.part.log}")


def worker_part(number: int, model: str, logs: Path, environ: Mapping[str, str]) -> Part:
    """number: from 1."""
    return Part(
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
    """What leads workers to the cluster, and to nothing else. s3: AWS_* variables."""
    kept = {name: value for name, value in environ.items() if not name.startswith("AWS_")}
    if workers > 1:
        kept.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
        kept.pop("SDBATCH_METRICS", None)  # one address for all of them
    for name in ("no_proxy", "NO_PROXY"):
        kept[name] = ",".join(filter(None, [environ.get(name), "127.0.0.1"]))
    return kept | {"SDBATCH_REDIS": redis, "SDBATCH_STORE": store, **s3}
