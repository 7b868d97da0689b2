"""How fast a worker is of late, from how many images it had finished at each of its reports."""

from __future__ import annotations

from collections import deque

WINDOW_S = 60.0
"""A speed is of the last minute."""

LEAST_S = 3.0
"""Time that a speed is of at least: a batch ends several images at once."""


class Speed:
    """Images a second of one worker. Times are seconds of any one clock."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()

    def rest(self) -> None:
        """It has no work now: what comes next has a speed of its own."""
        self._counts.clear()

    def of(self, now_s: float, images: int) -> float | None:
        """Speed since the oldest report of the last minute, up to this one; None while too little
        is known.

        images: finished since the worker began.
        """
        while self._counts and self._counts[0][0] < now_s - WINDOW_S:
            self._counts.popleft()
        self._counts.append((now_s, images))
        began_s, before = self._counts[0]
        if now_s - began_s < LEAST_S or images == before:
            return None
        return (images - before) / (now_s - began_s)
