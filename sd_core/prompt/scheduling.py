"""Prompts that change while an image is rendered, as AUTOMATIC1111's web UI documents them.

    [from:to:when]   `from` up to step `when`, then `to`
    [to:when]        nothing, then `to`
    [from::when]     `from`, then nothing
    [one|two|three]  each in turn, one a step

when: a whole number of steps, or with a point a share of them. Groups may be nested; any other
brackets are text here, and weights later (`sd_core.prompt.emphasis`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sd_core.prompt.errors import PromptError

MOST_NESTING = 32
_WHEN = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*")
_PAIRS = {"(": ")", "[": "]"}


class Until(NamedTuple):
    """Text that holds up to a step, the first being 1."""

    step: int
    text: str


@dataclass(frozen=True)
class _Switch:
    before: _Parts
    after: _Parts
    when: str
    offset: int

    def step(self, steps: int) -> int:
        """The last step of `before`."""
        number = float(self.when)
        step = int(number * steps) if "." in self.when else int(number)
        if not 0 <= step <= steps or ("." in self.when and not 0 <= number <= 1):
            raise PromptError(
                f"the prompt changes at {self.when}, which is outside its {steps} "
                f"step{'' if steps == 1 else 's'}",
                self.offset,
            )
        return step


@dataclass(frozen=True)
class _Turns:
    parts: tuple[_Parts, ...]


_Part = str | _Switch | _Turns
_Parts = tuple[_Part, ...]


def parse_schedule(text: str, steps: int) -> tuple[Until, ...]:
    """The texts of a prompt, one after the other; the last one holds up to `steps`.

    Raises `PromptError` for a change outside the steps, and for deep nesting.
    """
    if "[" not in text:  # most prompts, so quickly
        return (Until(steps, text),)
    parts = _Reader(text).read(0, len(text), 0)
    ends = sorted({steps, *_ends(parts, steps)} - {0})
    found: list[Until] = []
    for end in ends:
        one = Until(end, "".join(_at(parts, end, steps)))
        if found and found[-1].text == one.text:
            found.pop()
        found.append(one)
    return tuple(found)


def _ends(parts: _Parts, steps: int) -> Iterator[int]:
    """Last steps before a change."""
    for part in parts:
        if isinstance(part, _Switch):
            yield part.step(steps)
            yield from _ends(part.before, steps)
            yield from _ends(part.after, steps)
        elif isinstance(part, _Turns):
            yield from range(1, steps)
            for one in part.parts:
                yield from _ends(one, steps)


def _at(parts: _Parts, step: int, steps: int) -> Iterator[str]:
    for part in parts:
        if isinstance(part, _Switch):
            yield from _at(part.before if step <= part.step(steps) else part.after, step, steps)
        elif isinstance(part, _Turns):
            yield from _at(part.parts[(step - 1) % len(part.parts)], step, steps)
        else:
            yield part


class _Reader:
    """Reads the parts of one prompt."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._closings = _closings(text)

    def read(self, begin: int, end: int, depth: int) -> _Parts:
        """The parts of a stretch of the text."""
        if depth > MOST_NESTING:
            raise PromptError(f"brackets are nested more than {MOST_NESTING} deep", begin)
        text, parts = self._text, []
        plain = at = begin
        while at < end:
            close = self._closings.get(at)
            group = None if close is None else self._group(at, close, depth)
            if close is not None and group is not None:
                parts += [text[plain:at], group]
                plain = at = close + 1
            else:
                at += 2 if text[at] == "\\" else 1
        return tuple(part for part in (*parts, text[plain:end]) if part)

    def _group(self, begin: int, close: int, depth: int) -> _Switch | _Turns | None:
        """The group that a bracket holds; None where it only weights."""
        marks = list(_marks(self._text, begin + 1, close))
        edges = [begin, *(at for at, _ in marks), close]
        kinds = {mark for _, mark in marks}

        def part(number: int) -> _Parts:
            return self.read(edges[number] + 1, edges[number + 1], depth + 1)

        if kinds == {"|"}:
            return _Turns(tuple(part(number) for number in range(len(marks) + 1)))
        when = _WHEN.fullmatch(self._text, edges[-2] + 1, close) if kinds else None
        if kinds == {":"} and len(marks) <= 2 and when is not None:
            before = part(0) if len(marks) == 2 else ()
            return _Switch(before, part(len(marks) - 1), when[1], when.start(1))
        return None


def _closings(text: str) -> dict[int, int]:
    """Where a square bracket is closed, for those within which all others are."""
    found, opened, at = {}, [], 0
    while at < len(text):
        character = text[at]
        if character == "\\":
            at += 1
        elif character in _PAIRS:
            opened.append(at)
        elif character in ")]" and opened:
            begin = opened.pop()
            if _PAIRS[text[begin]] != character:
                opened.clear()  # they hold one that is not closed
            elif character == "]":
                found[begin] = at
        at += 1
    return found


def _marks(text: str, begin: int, end: int) -> Iterator[tuple[int, str]]:
    """Places of colons and bars that are in no bracket."""
    depth, at = 0, begin
    while at < end:
        character = text[at]
        if character == "\\":
            at += 1
        elif character in "([":
            depth += 1
        elif character in ")]":
            depth -= 1
        elif character in ":|" and not depth:
            yield at, character
        at += 1
