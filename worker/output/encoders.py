"""Where image files are encoded: on the thread that asks, or in processes beside this one.

Beside a GPU the engine's thread must never wait: each of its calls takes the interpreter, which a
thread that encodes holds for much of its time. A thousand small calls took 2.8 ms alone and 16 ms
beside two such threads. On a CPU the arithmetic needs all cores anyway.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.output.encode import encode_image, encode_thumbnail

log = logging.getLogger(__name__)

PROCESSES = 2
"""Enough for 100 images of 512×512 a second, or 25 of 1024×1024: a PNG of the former takes 17 ms
(measured on one core of a server).
"""


@contextlib.contextmanager
def encoder(device_type: str) -> Iterator[Encoder]:
    """Gives the encoder for images of a device of this type, for as long as they are made."""
    if device_type == "cpu":
        yield Encoder()
        return
    processes = EncoderProcesses()
    try:
        yield processes
    finally:
        processes.close()


class Encoder:
    """Encodes on the thread that asks."""

    def picture(
        self, pixels: NDArray[np.uint8], record: Mapping[str, Any], format: str, quality: int
    ) -> bytes:
        """An image file; see `encode_image`. Raises like it."""
        return self._run(encode_image, pixels, dict(record), format, quality)

    def thumbnail(self, pixels: NDArray[np.uint8]) -> bytes:
        """See `encode_thumbnail`."""
        return self._run(encode_thumbnail, pixels)

    def _run(self, encode: Callable[..., bytes], *arguments: Any) -> bytes:
        return encode(*arguments)


class EncoderProcesses(Encoder):
    """Processes that encode for threads of this one. They end with it, however it ends.

    Where they cannot be started or one is killed, files are encoded on the threads that ask.
    """

    def __init__(self) -> None:
        # A copy of a process that has threads and a GPU would not work.
        fresh = multiprocessing.get_context("spawn")
        self._pool: ProcessPoolExecutor | None = ProcessPoolExecutor(
            PROCESSES, mp_context=fresh, initializer=_begin
        )

    def _run(self, encode: Callable[..., bytes], *arguments: Any) -> bytes:
        pool = self._pool
        if pool is not None:
            try:
                return pool.submit(encode, *arguments).result()
            except (BrokenProcessPool, OSError) as error:
                self._pool = None
                log.warning("images are encoded in this process from now on: %s", error)
        return super()._run(encode, *arguments)

    def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()


def _begin() -> None:
    """Runs first in each process."""
    # Ctrl-C and a service's end go to all processes; what is rendered still has to be stored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(0)
