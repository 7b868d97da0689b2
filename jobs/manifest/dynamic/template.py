"""Prompts with choices in them, read into a tree.

{a|b|c}             one of them
{2$$a|b|c}          two of them, joined by ", "; {1-2$$a|b} one or two; {2$$ and $$a|b} joined so
{3::a|b}            a three times as often as b
__colours__         one line of the wildcard file `colours.txt`; __animals/*__ of several files
${who=a cat}        a variable: ${who} is a cat from here on; ${who=!{a|b}} is chosen once
${who:a cat}        a cat, if nothing is said of who
\\{ \\} \\|            the characters themselves
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

MOST_NESTING = 32
MOST_PARTS = 200
MOST_TAKEN = 100

_COUNT = re.compile(r"\s*(?:(\d{1,4})|(\d{0,4})-(\d{0,4}))\s*\$\$")
_WEIGHT = re.compile(r"\s*(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})::")
_WILDCARD = re.compile(r"__([A-Za-z0-9*](?:[\w/*.-]*[A-Za-z0-9*])?)__")
_VARIABLE = re.compile(r"\s*([A-Za-z_]\w{0,99})\s*(?:(=!?|:)|$)")


class TemplateError(ValueError):
    """A template that cannot be read or filled. offset: character where, from 0."""

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset


@dataclass(frozen=True)
class Wildcard:
    """A line of a file. name: without suffix, with `*` for several."""

    name: str
    offset: int


@dataclass(frozen=True)
class Assign:
    """A variable. once: its value is chosen here, and not at each use."""

    name: str
    value: Node
    once: bool


@dataclass(frozen=True)
class Use:
    """The value of a variable. otherwise: that of one that has none."""

    name: str
    otherwise: Node | None
    offset: int


@dataclass(frozen=True)
class Option:
    weight: float
    value: Node


class Pool(NamedTuple):
    """Options to take some of. upto: the weights of each and all before it."""

    options: tuple[Option, ...]
    upto: tuple[float, ...]


def pool_of(options: Iterable[Option]) -> Pool:
    """The options that may be taken at all."""
    kept = tuple(option for option in options if option.weight)
    return Pool(kept, tuple(itertools.accumulate(option.weight for option in kept)))


@dataclass(frozen=True)
class Choice:
    """Some of the options, none twice. most: None for all of them. offset: in the text."""

    least: int
    most: int | None
    separator: str
    options: tuple[Option, ...]
    offset: int

    @cached_property
    def pool(self) -> Pool:
        return pool_of(self.options)


@dataclass(frozen=True)
class Sequence:
    parts: tuple[Node, ...]


Node = str | Wildcard | Assign | Use | Choice | Sequence


@lru_cache(maxsize=100_000)
def parse_template(text: str) -> Node:
    """The tree of a template. Raises `TemplateError`."""
    return _Parser(text).read(0, len(text), 0)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._closings = dict(_closings(text))

    def read(self, begin: int, end: int, depth: int) -> Node:
        """The tree of a stretch of the text."""
        if depth > MOST_NESTING:
            raise TemplateError(f"braces are nested more than {MOST_NESTING} deep", begin)
        parts: list[Node] = []
        words: list[str] = []
        at = begin
        while at < end:
            node: Node | None = None
            after = at + 1
            wildcard = _WILDCARD.match(self._text, at, end)
            variable = self._text.startswith("${", at)
            if self._text[at] == "\\" and self._text[at + 1 : at + 2] in ("{", "}", "|"):
                words.append(self._text[at + 1])
                at += 2
                continue
            if wildcard is not None:
                node, after = Wildcard(wildcard[1], at), wildcard.end()
            elif variable or self._text[at] == "{":
                brace = at + variable
                close = self._closings.get(brace)
                if close is None or close >= end:
                    raise TemplateError("the brace is never closed", brace)
                inside = self._variable if variable else self._choice
                node, after = inside(brace + 1, close, depth), close + 1
            if node is None:
                words.append(self._text[at])
            else:
                parts += ["".join(words), node]
                words = []
            at = after
        parts.append("".join(words))
        if len(parts) > MOST_PARTS:
            raise TemplateError(f"it has more than {MOST_PARTS // 2} choices", begin)
        kept = tuple(part for part in parts if part != "")
        return kept[0] if len(kept) == 1 else Sequence(kept)

    def _choice(self, begin: int, end: int, depth: int) -> Node:
        least, separator, first = 1, ", ", begin
        most: int | None = 1
        count = _COUNT.match(self._text, begin, end)
        if count is not None:
            first = count.end()
            if count[1] is not None:
                least = most = int(count[1])
            else:
                least, most = int(count[2] or 0), int(count[3]) if count[3] else None
            mark = self._text.find("$$", first, next(self._bars(first, end), end))
            if mark >= 0:
                separator, first = self._text[first:mark], mark + 2
        edges = [first - 1, *self._bars(first, end), end]
        options = tuple(
            self._option(edge + 1, following, depth)
            for edge, following in itertools.pairwise(edges)
        )
        return self._checked(Choice(least, most, separator, options, begin - 1))

    def _checked(self, choice: Choice) -> Choice:
        if choice.most is not None and choice.most < choice.least:
            raise TemplateError(
                f"from {choice.least} to {choice.most} of them are none", choice.offset
            )
        if max(choice.least, choice.most or 0) > MOST_TAKEN:
            raise TemplateError(f"more than {MOST_TAKEN} of them are to be chosen", choice.offset)
        if not any(option.weight for option in choice.options):
            raise TemplateError("all of its weights are 0", choice.offset)
        return choice

    def _option(self, begin: int, end: int, depth: int) -> Option:
        weight = _WEIGHT.match(self._text, begin, end)
        if weight is None:
            return Option(1.0, self.read(begin, end, depth + 1))
        return Option(float(weight[1]), self.read(weight.end(), end, depth + 1))

    def _variable(self, begin: int, end: int, depth: int) -> Node:
        match = _VARIABLE.match(self._text, begin, end)
        if match is None:
            raise TemplateError("a variable is written ${name}, or ${name=value}", begin - 2)
        name, mark = match[1], match[2]
        if mark is None:
            return Use(name, None, begin - 2)
        value = self.read(match.end(), end, depth + 1)
        if mark == ":":
            return Use(name, value, begin - 2)
        return Assign(name, value, once=mark == "=!")

    def _bars(self, begin: int, end: int) -> Iterator[int]:
        """Places of the bars that are in no inner brace."""
        at = begin
        while at < end:
            if self._text[at] == "\\":
                at += 1
            elif self._text[at] == "{":
                at = self._closings.get(at, end)
            elif self._text[at] == "|":
                yield at
            at += 1


def _closings(text: str) -> Iterator[tuple[int, int]]:
    """Each brace that is closed, and where."""
    opened: list[int] = []
    at = 0
    while at < len(text):
        if text[at] == "\\" and text[at + 1 : at + 2] in ("{", "}", "|"):
            at += 1
        elif text[at] == "{":
            opened.append(at)
        elif text[at] == "}" and opened:
            yield opened.pop(), at
        at += 1
