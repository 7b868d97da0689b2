"""Work beside the main work of a device, on a stream of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Own = Callable[[Tensor], Tensor]
"""Makes a part of a result one that the main work may use, and that may be freed while it does."""


class Side:
    """Pieces of work by number. On a CPU they are done when they return."""

    @contextmanager
    def work(self, number: int) -> Iterator[Own]:
        """Work inside; numbers rise."""
        yield lambda part: part

    def wait(self, number: int) -> None:
        """The main work that is queued from here on comes after this piece."""


class CudaSide(Side):
    """A stream beside the one that is current on this thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._ended: dict[int, torch.cuda.Event] = {}  # pieces that nothing waited for yet

    @contextmanager
    def work(self, number: int) -> Iterator[Own]:
        main = torch.cuda.current_stream(self._device)

        def own(part: Tensor) -> Tensor:
            copy = part.clone()  # not a part of what else was made with it
            copy.record_stream(main)
            return copy

        with torch.cuda.stream(self._stream):
            yield own
            self._ended[number] = event = torch.cuda.Event()
            event.record(self._stream)

    def wait(self, number: int) -> None:
        # Pieces end in order, so an earlier one needs no waiting either.
        for earlier in [one for one in self._ended if one < number]:
            del self._ended[earlier]
        if number in self._ended:
            torch.cuda.current_stream(self._device).wait_event(self._ended.pop(number))


def side_of(device: torch.device) -> Side:
    """The side of a device, for use on the thread that owns it."""
    return CudaSide(device) if device.type == "cuda" else Side()
