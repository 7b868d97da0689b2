"""The host's lead over the device: bounded, and the device's time for each piece of work."""

from __future__ import annotations

import time
from collections import deque
from typing import Generic, TypeVar

import torch

from sd_core.transfer import AHEAD

Work = TypeVar("Work")


class Pace(Generic[Work]):
    """Pieces of work on a device, one after the other: `begin`, kernels, then `end`.

    Both `end` and `rest` give the pieces that the device has meanwhile ended, in order, each with
    its seconds. On a CPU a piece has ended when its last call returns.
    """

    def begin(self) -> None:
        self._began = time.monotonic()

    def end(self, work: Work) -> list[tuple[Work, float]]:
        return [(work, time.monotonic() - self._began)]

    def rest(self) -> list[tuple[Work, float]]:
        """Waits for all pieces."""
        return []


class CudaPace(Pace[Work]):
    """Waits in `end` where more than `AHEAD` pieces are under way.

    Without a bound the host would queue a whole job: what is more urgent would come after it, and
    buffers that it writes to would still be read. Times are of the device's own clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._queued: deque[tuple[Work, torch.cuda.Event, torch.cuda.Event]] = deque()

    def begin(self) -> None:
        self._start = self._mark()

    def end(self, work: Work) -> list[tuple[Work, float]]:
        self._queued.append((work, self._start, self._mark()))
        return [self._wait() for _ in range(len(self._queued) - AHEAD)]

    def rest(self) -> list[tuple[Work, float]]:
        return [self._wait() for _ in range(len(self._queued))]

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def _wait(self) -> tuple[Work, float]:
        work, start, end = self._queued.popleft()
        end.synchronize()
        return work, start.elapsed_time(end) / 1000


def pace_of(device: torch.device) -> Pace[Work]:
    """The pace of a device, for use on the thread that owns it."""
    return CudaPace(device) if device.type == "cuda" else Pace()
