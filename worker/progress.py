"""The progress of a job that this process renders: counted, and shown while it runs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from jobs.task import Failure
from jobs.terminal.figures import Figures
from jobs.terminal.progress import ProgressDisplay
from worker.faults import Reason
from worker.observer import Observer


class ProgressCounter:
    """Counts images and evaluations and says how fast they come. Safe to use from any thread."""

    def __init__(self, images: int, evaluations: int, clock: Callable[[], float]) -> None:
        self.images = images
        self.evaluations = evaluations
        self.rendered = self.reused = self.failed = self.evaluated = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._started = clock()

    def add(
        self,
        *,
        rendered: int = 0,
        reused: int = 0,
        failed: int = 0,
        evaluated: int = 0,
        skip: int = 0,
    ) -> None:
        """skip: evaluations that will not be needed after all."""
        with self._lock:
            self.rendered += rendered
            self.reused += reused
            self.failed += failed
            self.evaluated += evaluated
            self.evaluations -= skip

    @property
    def settled(self) -> int:
        """Images that need no more work, failed ones included."""
        return self.rendered + self.reused + self.failed

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._started

    @property
    def images_per_s(self) -> float:
        return self.rendered / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """By the evaluations so far; None before the first."""
        if not self.evaluated:
            return None
        return self.elapsed_s / self.evaluated * max(0, self.evaluations - self.evaluated)

    def figures(self) -> Figures:
        return Figures(
            images=self.images,
            settled=self.settled,
            evaluations=self.evaluations,
            evaluated=self.evaluated,
            images_per_s=self.images_per_s,
            remaining_s=self.remaining_s,
        )


class RunProgress(ProgressDisplay, Observer):
    """Shows a job that this process renders: quiet unless there is something to wait for."""

    def __init__(
        self,
        images: int,
        evaluations: int,
        console: Console,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counter = ProgressCounter(images, evaluations, clock)
        super().__init__(self.counter.figures, console, clock=clock)

    def step(self) -> None:
        """One evaluation of one image."""
        self.counter.add(evaluated=1)
        self.show()

    def rendered(self, index: int, seconds: float) -> None:
        self.counter.add(rendered=1)
        self.show()

    def reused(self, index: int, evaluations: int) -> None:
        """An image that was there already; its evaluations will not be needed."""
        self.counter.add(reused=1, skip=evaluations)
        self.show()

    def failed(self, failure: Failure, evaluations: int, reason: Reason) -> None:
        """An image that cannot be made; its remaining evaluations will not be needed."""
        self.counter.add(failed=1, skip=evaluations)
        said = f"failed: image {failure.index} ({failure.name}): {failure.reason}"
        with contextlib.suppress(OSError):
            self._console.print(Text(said, style="red"))
        self.show()
