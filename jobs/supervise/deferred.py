"""Work that the handler of a signal asks for, done on a thread of its own.

A handler runs between any two instructions of the main thread, which may just hold a lock: that of
an event it waits for, or of the list of threads. What takes such a lock once more, as `Event.set`
and `Thread.start` do, then waits for ever. `queue.SimpleQueue.put` is made for use there.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Deferred:
    """Calls `action` once for each `ask`, on its thread. A context manager: at its end, all that
    was asked for is done.
    """

    def __init__(self, action: Callable[[], None], name: str) -> None:
        self._action = action
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Safe in the handler of a signal. Returns at once."""
        self._asked.put(True)

    def _run(self) -> None:
        while self._asked.get():
            self._action()

    def close(self) -> None:
        """Returns when all that was asked for is done."""
        self._asked.put(False)
        self._thread.join()

    def __enter__(self) -> Deferred:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
