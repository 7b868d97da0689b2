"""What the renderer reports while it works, for whoever counts; `worker.metrics` does.

Apart from `worker.runner.Observer`, which follows the progress of one job.
"""

from __future__ import annotations

from typing import Protocol

from worker.faults import Reason


class Meter(Protocol):
    """Called from several threads; returns at once and does not raise."""

    def submitted(self) -> None:
        """An image went to the engine."""
        ...

    def left(self) -> None:
        """It left again: stored, failed or cancelled."""
        ...

    def rendered(self, seconds: float) -> None:
        """An image was rendered and stored. seconds: from admission to the last pixel."""
        ...

    def reused(self) -> None:
        """An image was in the store already."""
        ...

    def failed(self, reason: Reason) -> None:
        """An image could not be made."""
        ...

    def uploaded(self, seconds: float, size_bytes: int) -> None:
        """One image was put in the store."""
        ...


class NoMeter:
    """Counts nothing."""

    def submitted(self) -> None: ...
    def left(self) -> None: ...
    def rendered(self, seconds: float) -> None: ...
    def reused(self) -> None: ...
    def failed(self, reason: Reason) -> None: ...
    def uploaded(self, seconds: float, size_bytes: int) -> None: ...


NO_METER = NoMeter()
