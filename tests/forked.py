"""Processes that run a module as `python -m` does, forked from one that has imported its libraries.

The start of one that renders takes four seconds of a CPU, nearly all of them for imports; tests
start dozens.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preloaded"])


class ForkedProcess:
    """Has of `subprocess.Popen` what tests of workers use.

    entry: the module and its arguments. output: takes stdout; errors: takes stderr, by default
    the same file.
    """

    def __init__(
        self,
        entry: Sequence[str],
        environ: Mapping[str, str],
        output: Path,
        errors: Path | None = None,
    ) -> None:
        files = str(output), str(errors or output)
        self._process = _context.Process(target=_run, args=(entry, dict(environ), files))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _run(entry: Sequence[str], environ: dict[str, str], files: Sequence[str]) -> None:
    """In the forked process: all that `python -m` would find, and what it does at its end."""
    os.environ.clear()
    os.environ.update(environ)
    for stream, path in enumerate(files, start=1):
        written = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(written, stream)
        os.close(written)
    module, *arguments = entry
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()
