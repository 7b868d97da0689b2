"""Syntax of other programs in prompts, which is drawn as the letters that it is written in.

Only what is plainly meant as syntax is found: people write (parentheses) and 16:9 in plain prose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Numbers are bounded and texts looked at once: a prompt may be ten thousand of any character.
_NUMBER = r"[-+]?\d{0,4}\.\d{1,6}"
_WEIGHT = rf"\([^()]*(?:[^()\s\d] ?:[-+]?\d{{1,4}}|:\s?{_NUMBER})\)"  # not (at 16:9)
_NESTED = r"\(\((?=\s*[^()\s])[^()]+\)\)"
_BRACKETS = r"\[(?=[^\[\]]*[A-Za-z])[^\[\]]+\]"
_ESCAPED = r"\\[()\[\]]"
_WORD = r"(?<![\w\"'])(?<![A-Z]\s){}(?![\w\"'])(?!\s[A-Z]{{2}})"  # not inside a text in capitals

SYNTAX = {
    "weights": f"{_WEIGHT}|{_NESTED}|{_BRACKETS}|{_ESCAPED}",
    "networks": r"<(?i:lora|lyco|hypernet):[^<>]+>|\bembedding:\w+",
    "parts": f"{_WORD.format('BREAK')}|{_WORD.format('AND')}",
    "wildcards": r"(?<![\w.])__[A-Za-z0-9](?:[\w/*-]*[A-Za-z0-9*])?__(?!\w)|\{[^{}|]*\|[^{}]*\}",
    "options": r"(?<!\S)--[a-z]\w*",
}
"""Kind -> pattern of it."""

READ_BY_A1111 = ("weights", "parts")
"""Kinds that syntax a1111 reads."""

_KINDS = {kind: re.compile(pattern) for kind, pattern in SYNTAX.items()}

_MARKS = ("(", "[", "\\", "<", "{", "__", "--", "BREAK", "AND", "embedding:")
"""Without one of these there is none."""


def foreign_syntax(prompt: str) -> Iterator[tuple[str, str]]:
    """Each kind of `SYNTAX` that a prompt has, with the first example of it."""
    if not any(mark in prompt for mark in _MARKS):  # most prompts, so quickly
        return
    for kind, pattern in _KINDS.items():
        found = pattern.search(prompt)
        if found is not None:
            yield kind, found[0]
