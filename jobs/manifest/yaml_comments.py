"""Comments of a YAML file that may have been meant as text: `a cat #1 on a mat`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

# What is looked ahead at is bounded, as a line may be as long as the file.
_COMMENT = re.compile(rb"(?<![ \t\n])[ \t]+(?=(#[0-9A-Za-z_\x80-\xff][^\r\n]{0,300}))")


class Comment(NamedTuple):
    """A comment that follows something in its line, or what looks like one inside quotes.

    after: line and column, from 0, of what is before it. column: of its #, from 1.
    """

    after: tuple[int, int]
    column: int
    text: str


def comments(source: bytes) -> Iterator[Comment]:
    """The comments whose text begins right after the #, in the order of the file."""
    line, column, position = 0, 0, 0
    for found in _COMMENT.finditer(source):
        newline = source.rfind(b"\n", position, found.start())
        if newline >= 0:
            line += source.count(b"\n", position, newline + 1)
            column, position = 0, newline + 1
        column += len(source[position : found.start()].decode())
        position = found.start()
        text = found[1].decode(errors="ignore")
        yield Comment((line, column), column + len(found[0]) + 1, text)
