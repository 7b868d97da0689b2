"""A part of the local cluster: a process whose output goes to a log file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.local import tied

LOG_END_LINES = 15
_LOG_END_BYTES = 8192


class Part:
    """Has its own session, so that Ctrl-C reaches only the process that supervises it.

    name: for people. log: appended to; what an earlier cluster wrote there is moved to `<log>.old`.
    cwd: None for this process's own. dies_by: the signal it gets if this process is killed.
    held: descriptors that it keeps open as long as it lives.
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
        self.name = name
        self.log = log
        self._command = [sys.executable, "-I", "-S", tied.__file__, str(int(dies_by))]
        self._command += [str(os.getpid()), *command]
        self._environ = environ
        self._cwd = cwd
        self._held = held
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(FileNotFoundError):
            log.replace(log.with_name(f"{log.name}.old"))

    def start(self) -> None:
        """Also again, after it ended."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._cwd,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
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
        """Nothing happens if it does not run."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Returns when it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def log_end(self) -> str:
        """The last lines it wrote."""
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_END_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[-LOG_END_LINES:]
        return "\n".join("  " + "".join(filter(str.isprintable, line)) for line in lines)
