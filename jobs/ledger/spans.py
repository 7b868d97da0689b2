"""Numbers of images as a short text: `4-7,9` for 4, 5, 6, 7 and 9."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SPAN = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?")


def dump_spans(numbers: Iterable[int]) -> str:
    """The numbers in order, runs of them as their ends."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in spans)


def read_spans(text: str, most: int) -> list[int]:
    """The last numbers of a text, at most so many. Raises `ValueError` if it is no such text."""
    numbers: list[int] = []
    for span in reversed(text.split(",")):
        match = _SPAN.fullmatch(span)
        if match is None:
            raise ValueError(f"{span!r:.40} is no number and no span of numbers")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first:
            raise ValueError(f"{span!r:.40} ends before it begins")
        room = most - len(numbers)
        numbers += range(last, max(first, last - room + 1) - 1, -1)
    return numbers[::-1]
