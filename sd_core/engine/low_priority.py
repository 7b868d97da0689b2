"""A thread for what can wait: on Linux, the engine's batches go before it where cores are few."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

NICENESS = 5
"""Niceness of the thread, of 0 to 19. At 5 it has a quarter of a core that another one wants too:
each step is a factor of about 1.25 (sched(7)). More would have images wait longer for their
weights, and batches for these images.
"""


def low_priority_thread(name: str) -> ThreadPoolExecutor:
    """A pool of one thread, which begins with the first task and gives way to all others. So do
    those that PyTorch starts for its products.
    """
    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_give_way)


def _give_way() -> None:
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        with suppress(OSError):  # a sandbox may not allow it: then loading only costs more
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
