"""Workers whose engine only waits: `python -m tests.integration.waiting --seconds 0.5`.

All but the model is real: Celery, claims, records, PNG files. An image takes so many seconds, one
at a time, as if each worker had an accelerator of its own; so many more workers fit a machine than
it has cores. The processes are forked from one that has imported torch, which saves memory.

With `--settle-only` images are neither rendered nor stored: what is left is ledger and queue.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch

from sd_core.engine.engine import Rendered
from sd_core.engine.request import Request
from sd_core.spec import Sampling


class WaitingModel:
    """What a worker asks of a model besides rendering."""

    device = torch.device("cpu")
    dtype = torch.float32
    digest = "0" * 64
    execution = "none"
    kernels = ""
    provenance = None

    def tokens_over(self, prompt: str) -> int:
        return 0


class WaitingEngine:
    """Stands for `sd_core.engine.engine.Engine`: one thread, images in order."""

    def __init__(self, seconds: float) -> None:
        self.model = WaitingModel()
        self._seconds = seconds
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    alive = True
    compiling = False

    def compile_ahead(self) -> None: ...

    def stalled_s(self) -> float:
        return 0.0

    def submit(
        self,
        request: Request,
        *,
        on_step: Callable[[int, int], None] | None = None,
        state: bytes | None = None,
    ) -> Future[Rendered]:
        future: Future[Rendered] = Future()
        self._inbox.put((request, future, on_step, time.monotonic()))
        return future

    def suspend(self, futures: Iterable[Future[Rendered]], *, grace_s: float = 0.0) -> None:
        """There is nothing to go on with: an image begins anew."""
        for future in futures:
            future.cancel()

    def rows_of(self, sampling: Sampling) -> int:
        return 2

    def close(self, *, cancel: bool = False) -> None:
        self._inbox.put(None)
        self._thread.join()

    def _serve(self) -> None:
        ended = 0.0
        while (item := self._inbox.get()) is not None:
            request, future, on_step, submitted = item
            # As a device that does not wait for this thread, busy with something else, to wake up.
            ended = self._render(request, future, on_step, max(submitted, ended))

    def _render(
        self,
        request: Request,
        future: Future[Rendered],
        on_step: Callable[[int, int], None] | None,
        began: float,
    ) -> float:
        """When it ended, on the monotonic clock."""
        steps = request.sampling.steps
        for step in range(1, steps + 1):
            if future.cancelled():
                return time.monotonic()
            time.sleep(max(0.0, began + self._seconds * step / steps - time.monotonic()))
            if on_step is not None:
                on_step(step, steps)
        if future.set_running_or_notify_cancel():
            size = request.sampling.height, request.sampling.width
            pixels, latents = np.zeros((*size, 3), np.uint8), torch.zeros(4, 8, 8)
            future.set_result(Rendered(pixels, latents, steps, self._seconds))
        return began + self._seconds


def only_wait(seconds: float) -> None:
    """Patches what a worker of this process loads."""
    from worker import process

    process.load = lambda choice: WaitingModel()  # type: ignore[assignment]
    process.Engine = lambda model, **_: WaitingEngine(seconds)  # type: ignore[assignment,misc]


def only_settle() -> None:
    """Patches what a worker of this process does with a shard."""
    from worker.serve import worker

    def render_shard(tasks: Iterable[Any], held: Any, *, ledger: Any, **_: Any) -> None:
        done = [task.index for task in tasks]
        ledger.settle(held.lease, done)

    worker.render_shard = render_shard  # type: ignore[assignment]


def serve(processes: int) -> int:
    """Forks the workers and passes SIGTERM on; the sum of their exit codes. One is not forked."""
    from jobs.cli.root import main

    if processes == 1:
        return main(["worker"])
    children: list[int] = []
    for _ in range(processes):
        child = os.fork()
        if child == 0:
            os._exit(main(["worker"]))
        children.append(child)

    def stop(*_: object) -> None:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    return sum(os.waitpid(child, 0)[1] for child in children)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.0, help="an image takes")
    parser.add_argument("--settle-only", action="store_true")
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    only_wait(args.seconds)
    if args.settle_only:
        only_settle()
    sys.exit(serve(args.processes))
