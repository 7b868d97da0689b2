"""Signals that ask this process to stop: Ctrl-C, SIGTERM, and SIGHUP when its terminal is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Counts how often this process was told to stop.

    on_stop: called with the count, by the signal's handler, so it may take no lock: see
    `jobs.supervise.deferred`.
    """

    def __init__(self, on_stop: Callable[[int], None] = lambda count: None) -> None:
        self.count = 0
        self._on_stop = on_stop

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
            if self.count:  # a shell that ends sends one, and the system another
                return
        self.count += 1
        self._on_stop(self.count)

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Handles the signals meanwhile; in the main thread only."""
        # One that is ignored already stays so: `nohup` means it.
        heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, self._on_signal) for number in heeded}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def leave_terminal() -> None:
    """Lets output that would go to a terminal that hung up go nowhere: writing there fails."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # it is closed
            terminal = stat.S_ISCHR(os.fstat(descriptor).st_mode)
            if terminal and not os.isatty(descriptor):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)
