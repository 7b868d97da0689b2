"""One cluster a folder, and signals that are counted."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from jobs.errors import InputError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Holds the folder's lock; gives its descriptor, for servers to hold it as long as they live.

    Raises `InputError` if another cluster has it, `OSError` if the folder cannot be written.
    """
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"a local cluster runs in {folder} already; end that one, or give this one another "
                "--folder"
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)


class Interrupts:
    """How often this process was told to stop."""

    def __init__(self) -> None:
        self.count = 0

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        # One that is ignored already stays so: `nohup` means it.
        heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, self._on_signal) for number in heeded}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
