"""Stops a run once the budget of its job is used up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from jobs.budget import Budget
from worker.observer import Observer


class BudgetWatch(Observer):
    """Counts images and time of a run, and sets its stop.

    Time is that of this run alone, from the first event on: a folder does not know of others.
    spent: the limit that was reached, for people.
    """

    def __init__(
        self, budget: Budget, stop: threading.Event, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.spent: str | None = None
        self._budget = budget
        self._stop = stop
        self._clock = clock
        self._started: float | None = None
        self._images = 0
        self._lock = threading.Lock()

    def found(self, images: int) -> None:
        """Images are there already, and were not looked at one by one."""
        self._look(images=images)

    def step(self) -> None:
        self._look(images=0)

    def rendered(self, index: int, seconds: float) -> None:
        self._look(images=1)

    def reused(self, index: int, evaluations: int) -> None:
        self._look(images=1)

    def _look(self, *, images: int) -> None:
        with self._lock:
            now = self._clock()
            if self._started is None:
                self._started = now
            self._images += images
            if self.spent is None:
                worker_s = now - self._started
                self.spent = self._budget.spent(worker_s=worker_s, images=self._images)
                if self.spent is not None:
                    self._stop.set()
