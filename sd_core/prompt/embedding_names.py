"""Names of embeddings (textual inversion, Gal et al. 2022) in the text of a prompt."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_PIECE = re.compile(r"[a-z]+|[^a-z\s]")


class Found(NamedTuple):
    """begin, end: of the place in the text."""

    begin: int
    end: int
    name: str


class EmbeddingNames:
    """Finds names where they stand as words: no letter follows the last letter of a name, nor
    stands before the first, as AUTOMATIC1111's web UI finds the tokens of names. Capital letters
    are small ones. Of names that begin at one place the longest counts.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._by_piece: dict[str, list[tuple[str, str]]] = {}
        for name in names:
            small = name.translate(_LOWER)
            first = _PIECE.match(small)
            if first is not None:
                self._by_piece.setdefault(first[0], []).append((small, name))
        for known in self._by_piece.values():
            known.sort(key=lambda pair: len(pair[0]), reverse=True)

    def find(self, text: str) -> Iterator[Found]:
        """All places in order; none lies in another."""
        if not self._by_piece:
            return
        small, end = text.translate(_LOWER), 0
        for piece in _PIECE.finditer(small):
            if piece.start() < end:
                continue
            for known, name in self._by_piece.get(piece[0], ()):
                after = piece.start() + len(known)
                if small.startswith(known, piece.start()) and not _goes_on(small, after):
                    yield Found(piece.start(), after, name)
                    end = after
                    break


def _goes_on(text: str, place: int) -> bool:
    """True if a word of letters stands on both sides of this place."""
    return text[place - 1 : place + 1].isalpha() and place < len(text) and text[place].isascii()


@lru_cache(maxsize=256)
def finder(names: tuple[str, ...]) -> EmbeddingNames:
    """An `EmbeddingNames`, kept for the next prompt."""
    return EmbeddingNames(names)
