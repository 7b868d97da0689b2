"""Signals that ask to stop, above all that of a terminal that is closed."""

from __future__ import annotations

import os
import pty
import signal
import sys
from pathlib import Path

import pytest

from jobs.supervise.signals import SIGNALS, Interrupts
from jobs.terminal.console import Terminal
from worker.run_command import stopping_on_signals

RUN = """
import signal
import sys
from pathlib import Path
from jobs.terminal.console import Terminal
from jobs.task import Failure
from worker.faults import Reason
from worker.progress import RunProgress
from worker.run_command import stopping_on_signals

terminal = Terminal(json=False)
with stopping_on_signals(terminal) as stop, RunProgress(2, 4, terminal.err) as progress:
    print("running", flush=True)
    stop.wait()
    signal.raise_signal(signal.SIGHUP)  # that of the shell
    progress.rendered(0, 1.0)
    progress.failed(Failure(1, "b", "a ring", 0, "broke"), 0, Reason.OTHER)
    Path(sys.argv[1]).write_text("saved")
print("stopped", flush=True)
terminal.err.print("stopped")
"""


def test_a_terminal_that_is_closed_gives_the_time_to_save(tmp_path: Path):
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", RUN, str(tmp_path / "saved")])
    said = b""
    while b"running" not in said:
        said += os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "saved").read_text() == "saved"


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_stops_a_run(number):
    before = signal.getsignal(number)
    with stopping_on_signals(Terminal(json=False)) as stop:
        signal.raise_signal(number)
        assert stop.wait(60)
    assert signal.getsignal(number) is before


def test_a_terminal_that_hangs_up_counts_once():
    interrupts = Interrupts()
    with interrupts.counting():
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
    assert interrupts.count == 2


def test_what_is_ignored_already_stays_so():
    interrupts = Interrupts()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.counting():
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert interrupts.count == 1
