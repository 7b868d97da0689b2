"""Pauses between the deaths of a process and its next starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from jobs.errors import ExitCode

HOPELESS = (ExitCode.BAD_INPUT, ExitCode.MODEL)
"""Exit codes of a worker that would end so again: a setting is wrong, or its model cannot load."""


class Restarts:
    """Counts quick deaths in a row of one process.

    pauses_s: seconds before it is started again, after one, two, … of them.
    steady_s: a process that lived so long did not die quickly.
    """

    def __init__(
        self,
        pauses_s: Sequence[float],
        steady_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pauses_s = pauses_s
        self._steady_s = steady_s
        self._clock = clock
        self._deaths = 0
        self._alive_since_s: float | None = None
        self._due_at_s = 0.0

    def alive(self) -> None:
        """The process lives from now on, as far as a steady life is counted."""
        self._alive_since_s = self._clock()

    def died(self) -> bool:
        """Count a death; whether there are more of them than pauses. A process that was never
        `alive` died quickly.
        """
        since, self._alive_since_s = self._alive_since_s, None
        if since is not None and self._clock() - since >= self._steady_s:
            self._deaths = 0
        self._deaths += 1
        return self._deaths > len(self._pauses_s)

    def pause(self) -> float:
        """Seconds from now until `due`, by the deaths so far."""
        pause_s = self._pauses_s[min(self._deaths, len(self._pauses_s)) - 1]
        self._due_at_s = self._clock() + pause_s
        return pause_s

    def due(self) -> bool:
        """True if it is time to start the process again."""
        return self._clock() >= self._due_at_s
