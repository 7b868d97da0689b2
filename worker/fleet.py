"""Several workers on one machine: a process for each, started again when it dies.

No torch and no CUDA here. A worker is a new program with its own environment, not a fork: CUDA
reads CUDA_VISIBLE_DEVICES once, and does not survive a fork.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO

from jobs.errors import ExitCode, InputError, Interrupted
from jobs.formatting import counted
from jobs.local import tied
from jobs.settings import Settings
from jobs.signals import Interrupts
from worker import logs
from worker.gpu import Place, choose

log = logging.getLogger(__name__)

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
"""Before a worker is started again, after one, two, … quick deaths in a row."""

STEADY_S = 300.0
"""A worker that lived so long did not die quickly."""

HOPELESS = (ExitCode.BAD_INPUT, ExitCode.MODEL)
"""How a worker ends that would end so again, as would all the others."""

WORKER = (sys.executable, "-P", "-m", "jobs.cli", "worker")

POLL_S = 0.1
_LINE_BYTES = 2**16
_LAST_WORDS_S = 5.0  # to read what a worker wrote before it ended


class Member:
    """One worker process after the other at one place.

    command: what to start. environ: the whole environment. output: takes the lines it writes.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        output: Callable[[bytes], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        # If this process is killed, the kernel kills the worker too: a GPU must be free for the
        # next one at once. What it had comes back by its lease.
        tie = (sys.executable, "-I", "-S", tied.__file__, str(int(signal.SIGKILL)))
        self._command = [*tie, str(os.getpid()), *command]
        self._environ = environ
        self._output = output
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._deaths = 0  # quick ones in a row
        self._at_s = 0.0  # started, or to be started again

    @property
    def running(self) -> bool:
        """Whether there is a process whose end nobody has seen yet."""
        return self._process is not None

    def start(self) -> None:
        """Only from the main thread: the kernel takes the end of the thread that starts a process
        for the end of its parent.
        """
        self._process = subprocess.Popen(
            self._command,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes from here, once
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(
            target=_read_lines, args=(self._process.stdout, self._output), daemon=True
        )
        self._reader.start()
        self._at_s = self._clock()

    def take_end(self) -> int | None:
        """The exit code, once, when the process has ended; minus the signal that ended it."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        assert self._reader is not None
        self._reader.join(_LAST_WORDS_S)
        self._process = None
        return code

    def pause(self) -> float:
        """Counts a death; seconds until `due`."""
        if self._clock() - self._at_s >= STEADY_S:
            self._deaths = 0
        pause_s = PAUSES_S[min(self._deaths, len(PAUSES_S) - 1)]
        self._deaths += 1
        self._at_s = self._clock() + pause_s
        return pause_s

    def due(self) -> bool:
        """Whether it is time to start it again."""
        return self._clock() >= self._at_s

    def send(self, number: signal.Signals) -> None:
        """Nothing happens if it does not run."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Returns when it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Fleet:
    """All members, from start to end."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._wanted = set(members)  # those that are not over
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
                for member in self._members:
                    member.start()
                while self._wanted:
                    if interrupts.count > 1:
                        raise Interrupted("killed; what was not stored yet is rendered again")
                    if interrupts.count and not self._stopping:
                        log.info("stopping %s", counted(len(self._wanted), "worker"))
                        self._stop()
                    for member in tuple(self._wanted):
                        self._look(member)
                    time.sleep(POLL_S)
            finally:
                for member in self._members:
                    member.kill()
        return self._code

    def _look(self, member: Member) -> None:
        code = member.take_end()
        if code is not None:
            self._ended(member, code)
        elif not member.running and (self._stopping or member.due()):
            if self._stopping:
                self._wanted.discard(member)
            else:
                log.info("%s is started again", member.name)
                member.start()

    def _ended(self, member: Member, code: int) -> None:
        how = f"exit code {code}" if code >= 0 else f"signal {-code}, {signal.strsignal(-code)}"
        # A worker that is still loading its model ends by the signal itself.
        if code == 0 or (self._stopping and code == -signal.SIGTERM):
            log.info("%s has ended", member.name)
            self._wanted.discard(member)
        elif self._stopping or code in HOPELESS:
            log.error("%s failed (%s)", member.name, how)
            self._wanted.discard(member)
            self._code = self._code or (code if code > 0 else 128 - code)
            self._stop()
        else:
            log.warning("%s died (%s); again in %.0f s", member.name, how, member.pause())

    def _stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            for member in self._members:
                member.send(signal.SIGTERM)


def run_workers(
    gpus: str, settings: Settings, environ: Mapping[str, str], command: Sequence[str] = WORKER
) -> int:
    """What `sdbatch worker --gpus` does. gpus: see `worker.gpu.choose`; environ: of the workers.

    Returns the exit code. Raises `InputError` before anything starts, and `Interrupted`.
    """
    places = choose(gpus, environ)
    settings.model(settings.worker_model)
    environs = worker_environs(places, settings.metrics, environ)
    logs.set_up(settings.log, f"fleet-{os.getpid()}")
    # A prefix would spoil JSON, where each line names its worker anyway.
    prefixed = settings.log != "json"
    members = [
        Member(place.name, command, theirs, _to_stderr(place.name if prefixed else None))
        for place, theirs in zip(places, environs, strict=True)
    ]
    return Fleet(members).run()


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


def _read_lines(pipe: BinaryIO, output: Callable[[bytes], None]) -> None:
    with pipe:
        while line := pipe.readline(_LINE_BYTES):
            output(line if line.endswith(b"\n") else line + b"\n")


def _to_stderr(name: str | None) -> Callable[[bytes], None]:
    prefix = b"" if name is None else f"[{name}] ".encode()

    def write(line: bytes) -> None:
        with contextlib.suppress(OSError):  # a worker must not wait for a reader who is gone
            sys.stderr.buffer.write(prefix + line)
            sys.stderr.buffer.flush()

    return write
