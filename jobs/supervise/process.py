"""Child processes that end with this one, and whose output goes to a log file or line by line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from jobs.supervise import die_with_parent

LOG_END_LINES = 15
_LOG_END_BYTES = 8192
_LINE_BYTES = 2**16
_LAST_WORDS_S = 5.0  # to read what a process wrote before it ended


class SupervisedProcess:
    """Has its own session, so that Ctrl-C reaches only the process that supervises it.

    name: for people. environ: the whole environment. cwd: None for this process's own.
    dies_by: the signal that the kernel sends it if this process is killed.
    held: descriptors that it keeps open as long as it lives.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environ: Mapping[str, str],
        cwd: Path | None = None,
        dies_by: signal.Signals = signal.SIGKILL,
        held: Sequence[int] = (),
    ) -> None:
        self.name = name
        self._command = [sys.executable, "-I", "-S", die_with_parent.__file__, str(int(dies_by))]
        self._command += [str(os.getpid()), *command]
        self._environ = environ
        self._cwd = cwd
        self._held = held
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the program; again, after it ended.

        Only from the main thread: the kernel takes the end of the thread that starts a process for
        the end of its parent.
        """
        self._process = self._popen(subprocess.PIPE)

    def _popen(self, output: int | BinaryIO) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            cwd=self._cwd,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=self._held,
        )

    @property
    def pid(self) -> int | None:
        """None before its start."""
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Minus the signal's number if one ended it; None while it runs."""
        return None if self._process is None else self._process.poll()

    def how_it_ended(self) -> str:
        code = self.exit_code
        if code is None or code >= 0:
            return f"exit code {code}"
        return f"killed by {signal.Signals(-code).name}"

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it does not run."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Returns when it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class LoggedProcess(SupervisedProcess):
    """Writes to a log file.

    log: appended to; what an earlier process wrote there is moved to `<log>.old`.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        environ: Mapping[str, str],
        cwd: Path | None = None,
        dies_by: signal.Signals = signal.SIGKILL,
        held: Sequence[int] = (),
    ) -> None:
        super().__init__(name, command, environ=environ, cwd=cwd, dies_by=dies_by, held=held)
        self.log = log
        with contextlib.suppress(FileNotFoundError):
            log.replace(log.with_name(f"{log.name}.old"))

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = self._popen(log)

    def log_end(self) -> str:
        """The last lines it wrote."""
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_END_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[-LOG_END_LINES:]
        return "\n".join("  " + "".join(filter(str.isprintable, line)) for line in lines)


class PipedProcess(SupervisedProcess):
    """Has its output read line by line. output: takes each line, in a thread of its own."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        output: Callable[[bytes], None],
        *,
        environ: Mapping[str, str],
    ) -> None:
        super().__init__(name, command, environ=environ)
        self._output = output
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        super().start()
        assert self._process is not None
        assert self._process.stdout is not None
        self._reader = threading.Thread(
            target=_read_lines, args=(self._process.stdout, self._output), daemon=True
        )
        self._reader.start()

    def drain(self) -> None:
        """Wait until what it wrote before its end is read; not long, for a child may hold on."""
        if self._reader is not None:
            self._reader.join(_LAST_WORDS_S)


def _read_lines(pipe: BinaryIO, output: Callable[[bytes], None]) -> None:
    with pipe:
        while line := pipe.readline(_LINE_BYTES):
            output(line if line.endswith(b"\n") else line + b"\n")
