"""Weights in a prompt, as AUTOMATIC1111's web UI documents them.

    (word)       1.1 times the attention; ((word)) 1.21 times
    (word:1.3)   1.3 times
    [word]       1 / 1.1 times
    \\( \\) \\[ \\]  the characters themselves
    BREAK        the rest of the prompt begins a new chunk

A bracket that is never closed holds for the rest of the prompt; one that was never opened is text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sd_core.prompt.errors import PromptError

FACTORS = {"(": 1.1, "[": 1 / 1.1}
MOST_WEIGHT = 100.0
MOST_NESTING = 100

_OPENED = {")": "(", "]": "["}

_TOKEN = re.compile(
    r"""\\(?P<escaped>[\\()\[\]])
    |(?P<open>[(\[])
    |:\s*(?P<weight>[+-]?[.\d]+)\s*(?P<weighted>\))
    |(?P<close>[)\]])
    |(?P<text>[^\\()\[\]:]+|[\\:])""",
    re.VERBOSE,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


class Fragment(NamedTuple):
    """Text of one weight, which is cut into tokens by itself."""

    text: str
    weight: float = 1.0


Section = tuple[Fragment, ...]
"""Fragments between two `BREAK`s."""


class _Sections:
    """Sections in the making; `None` among the fragments stands for a break."""

    def __init__(self) -> None:
        self.fragments: list[Fragment | None] = []

    def add(self, text: str) -> None:
        for number, part in enumerate(_BREAK.split(text)):
            if number:
                self.fragments.append(None)
            self.fragments.append(Fragment(part))

    def multiply(self, first: int, factor: float) -> None:
        for place in range(first, len(self.fragments)):
            fragment = self.fragments[place]
            if fragment is not None:
                self.fragments[place] = fragment._replace(weight=fragment.weight * factor)

    def sections(self) -> tuple[Section, ...]:
        """Neighbours of the same weight become one, empty ones go."""
        found: list[list[Fragment]] = [[]]
        for fragment in self.fragments:
            if fragment is None:
                found.append([])
            elif fragment.text:
                if found[-1] and found[-1][-1].weight == fragment.weight:
                    fragment = Fragment(found[-1].pop().text + fragment.text, fragment.weight)
                found[-1].append(fragment)
        return tuple(map(tuple, found))


def parse_emphasis(text: str) -> tuple[Section, ...]:
    """Sections of weighted fragments; at least one section, which may be empty.

    Raises `PromptError` for a weight that is no number or beyond 100, and for deep nesting.
    """
    made = _Sections()
    opened: dict[str, list[int]] = {"(": [], "[": []}  # the first fragment inside each
    for token in _TOKEN.finditer(text):
        bracket, weight = token["open"], token["weight"]
        closed = opened.get(_OPENED.get(token["close"], ""))
        if token["escaped"]:
            made.add(token["escaped"])
        elif bracket:
            opened[bracket].append(len(made.fragments))
            if len(opened[bracket]) > MOST_NESTING:
                message = f"brackets are nested more than {MOST_NESTING} deep"
                raise PromptError(message, token.start())
        elif weight is not None and opened["("]:
            made.multiply(opened["("].pop(), _number(weight, token.start("weight")))
        elif closed:
            made.multiply(closed.pop(), FACTORS[_OPENED[token["close"]]])
        else:
            made.add(token[0])
    for bracket, firsts in opened.items():
        for first in firsts:
            made.multiply(first, FACTORS[bracket])
    sections = made.sections()
    for fragment in (fragment for section in sections for fragment in section):
        if abs(fragment.weight) > MOST_WEIGHT:
            words = fragment.text.strip()
            message = f"weight {fragment.weight:.4g} of {words!r:.40} is beyond {MOST_WEIGHT:g}"
            raise PromptError(message, max(0, text.find(words)))
    return sections


def _number(text: str, offset: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise PromptError(f"weight {text!r:.40} is no number", offset) from None
