"""Work that handlers of signals ask for, wherever they interrupt the main thread."""

from __future__ import annotations

import signal
import threading

from jobs.supervise.deferred import Deferred
from jobs.supervise.signals import Interrupts
from jobs.terminal.console import Terminal
from worker import process
from worker.run_command import stopping_on_signals


def test_all_that_was_asked_for_is_done():
    done = []
    with Deferred(lambda: done.append(threading.current_thread().name), "other") as deferred:
        for _ in range(3):
            deferred.ask()
    assert done == ["other"] * 3


def test_a_signal_while_the_main_thread_holds_the_lock_of_what_it_sets():
    """`Event.wait` does for a moment: a handler that sets the event would wait for ever."""
    with stopping_on_signals(Terminal(json=False)) as stop:
        with stop._cond:
            signal.raise_signal(signal.SIGTERM)
        assert stop.wait(60)


def test_a_signal_while_the_main_thread_holds_the_list_of_threads(monkeypatch):
    """`Thread.start` does for a moment."""
    drained = threading.Event()
    with Deferred(drained.set, "drain") as draining:
        life = type("Life", (), {"draining": draining})
        monkeypatch.setattr(process, "_life", life)
        with Interrupts(lambda count: process.drain()).counting(), threading._active_limbo_lock:
            signal.raise_signal(signal.SIGTERM)
        assert drained.wait(60)
