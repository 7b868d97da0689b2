"""CUDA graphs: the kernels of a call, captured once and launched again as one.

A model's evaluation is some thousand kernels, of which a fast device ends each before the host has
launched the next. A graph of them is one launch. torch's own trees of graphs (`reduce-overhead`)
belong to the thread that compiled them, and copy their inputs; these belong to the engine, whose
images are at fixed addresses already.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

KEPT = 16
"""Graphs that are kept. Each holds the memory of its row count's activations, in a shared pool."""


Key = TypeVar("Key", bound=Hashable)


class Graphs(Generic[Key]):
    """Graphs of one device, by key. captured, refused: how many captures there were, and failed."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: OrderedDict[Key, torch.cuda.CUDAGraph] = OrderedDict()
        self._refused: set[Key] = set()
        self._pool = torch.cuda.graph_pool_handle()
        self.captured = 0
        self.refused = 0

    def run(self, key: Key, call: Callable[[], None], warm: Callable[[], object]) -> bool:
        """Does what `call` does; False, with nothing done, where it cannot be captured.

        key: the same for calls that run the same kernels on the same addresses.
        warm: makes libraries allocate and choose what they need for `call`; it changes nothing.
        """
        if key not in self._graphs:
            if key in self._refused:
                return False
            try:
                graph = self._capture(call, warm)
            except (RuntimeError, MemoryError):
                # Mostly of memory. What is wrong otherwise, the call without a graph tells.
                self._refused.add(key)
                self.refused += 1
                return False
            self._graphs[key] = graph
            if len(self._graphs) > KEPT:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        self._graphs[key].replay()
        return True

    def drop(self, outdated: Callable[[Key], bool]) -> None:
        """Forgets the graphs of these keys: what they read and write is about to be freed."""
        torch.cuda.current_stream(self._device).synchronize()
        for key in [key for key in self._graphs if outdated(key)]:
            del self._graphs[key]

    def forget(self) -> None:
        """Frees the memory of all graphs; they are captured again when they are needed."""
        torch.cuda.current_stream(self._device).synchronize()
        self._graphs.clear()
        self._refused.clear()

    def _capture(
        self, call: Callable[[], None], warm: Callable[[], object]
    ) -> torch.cuda.CUDAGraph:
        stream, side = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        side.wait_stream(stream)
        with torch.cuda.stream(side):
            warm()
        stream.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Of this thread: others may pin memory meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            call()
        self.captured += 1
        return graph
