"""The one error of everything that reads weights, and how its messages show what a file holds."""

from __future__ import annotations

import reprlib
from typing import Any

SHOWN = 200
"""Characters of a file's own text that a message takes over at most."""


class CheckpointError(ValueError):
    """A model could not be loaded; the message says what, where, and what was expected."""


def shown(value: Any) -> str:
    """A value from a file as a message shows it: on one line, of at most `SHOWN` characters.

    The time it takes has a bound, whatever the value is. `repr` has none: tuples that share their
    parts may have 2^200 leaves, and a text may be as long as its file.
    """
    return _REPR.repr(value)[:SHOWN]


def named(name: str) -> str:
    """A name from a file as a message shows it: as it is where it is short and printable."""
    return name if len(name) <= SHOWN and name.isprintable() else shown(name)


class _ShortRepr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = SHOWN // 2

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write more than 4,300 digits, and takes long for fewer.
        return super().repr_int(x, level) if x.bit_length() <= 256 else f"{x.bit_length()} bits"


_REPR = _ShortRepr()
