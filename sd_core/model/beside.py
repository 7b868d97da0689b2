"""Changes that a compiled program makes to its results without being compiled for them.

torch.compile makes a program for each form of a model's arguments, and each rounds differently. So
adapters and long contexts, which a few rows of a batch have, are no arguments: at each place where
there may be some, the program calls an operator that the compiler does not look into, and that
finds here what to do. So one program serves all batches of a shape.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

Change = Callable[[Tensor, Tensor], object]
"""Changes a result, the first, in place. The second is what it was made of."""


class Placed(Protocol):
    """Looks for its change under the name `place`, where that is not None."""

    place: str | None


_NONE: Mapping[str, Change] = {}
_of_thread = threading.local()


@contextmanager
def beside(changes: Mapping[str, Change]) -> Iterator[None]:
    """Has programs that this thread calls meanwhile make changes. changes: by their places."""
    before = getattr(_of_thread, "changes", _NONE)
    _of_thread.changes = changes
    try:
        yield
    finally:
        _of_thread.changes = before


@contextmanager
def placed(parts: Mapping[str, Placed]) -> Iterator[None]:
    """Has parts of a model look here for changes meanwhile, under their names."""
    try:
        for name, part in parts.items():
            part.place = name
        yield
    finally:
        for part in parts.values():
            part.place = None


@torch.library.custom_op("sdbatch::change", mutates_args=("out",))
def change(out: Tensor, x: Tensor, place: str) -> None:
    """Makes the change of a place, if there is one, to `out`, which was made of x."""
    found = getattr(_of_thread, "changes", _NONE).get(place)
    if found is not None:
        found(out, x)


@change.register_fake
def _(out: Tensor, x: Tensor, place: str) -> None:
    return None
