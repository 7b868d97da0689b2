"""JSON from outside, whose structure is counted before any of it is built.

Python's lists take 60 bytes for the two characters `[]`, so that a text of 90 MB takes 2.6 GB, and
values nested 100,000 deep end in a RecursionError, here or in the code that looks at them. Counting
takes twice the text's memory; then a value takes at most about 200 bytes, and up to 4 for each
character.
"""

from __future__ import annotations

import json
from itertools import accumulate
from typing import Any

from sd_core.weights.errors import shown

MAX_DEPTH = 32
"""Lists and objects inside each other. Model files have about 5."""

_BRACKETS = b"[]{}"
_OTHERS = bytes(byte for byte in range(256) if byte not in _BRACKETS)


def parse_json(text: bytes, *, max_values: int, unique: bool = False) -> Any:
    """The value of a JSON text in UTF-8.

    unique: refuses an object that has a key twice; by default its last value counts, as usual.
    Raises `ValueError` saying what is wrong: it is no JSON, it has more than `max_values` numbers,
    texts, lists and objects, or it is nested deeper than `MAX_DEPTH`.
    """
    structure = _without_strings(text, max_values)
    count = sum(structure.count(mark) for mark in (b",", b"[", b"{", b":")) + 1
    if count > max_values:
        raise ValueError(f"it has more than {max_values} values")
    steps = (1 if byte in b"[{" else -1 for byte in structure.translate(None, _OTHERS))
    if max(accumulate(steps), default=0) > MAX_DEPTH:
        raise ValueError(f"its values are nested more than {MAX_DEPTH} deep")
    value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique if unique else None)
    if b"\\ud" in text.lower():
        # Half a character, which no file or terminal takes.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"it has the key {shown(key)} twice")
        values[key] = value
    return values


def _without_strings(text: bytes, max_values: int) -> bytes:
    """Leaves what stands outside of strings, exact up to the first mistake, where json stops."""
    plain = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 2 * max_values:
        raise ValueError(f"it has more than {max_values} values")
    return b"".join(plain.split(b'"')[::2])
