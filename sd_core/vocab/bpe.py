"""CLIP's byte-pair encoding in plain Python: how many tokens a text has, without torch.

It counts what `sd_core.model.tokenizer` would make, for machines that only check and plan jobs. The
vocabulary of 49,408 entries is CLIP's own (Radford et al. 2021; licence beside the file).
"""

from __future__ import annotations

import gzip
import heapq
import re
import unicodedata
from functools import cache
from importlib import resources

PROMPT_TOKENS = 75
"""Tokens of a prompt that the text encoder reads: 77 with start and end."""

MOST_CHUNKS = 16
"""Chunks of 75 tokens that a prompt may have: at v1 size each takes 4 MB of the device's memory."""

_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49_152 - 256 - 2  # CLIP keeps this many of the file's merges

# Whatever is between spaces is cut into these, then encoded piece by piece. Anything but ASCII is
# replaced before by an `a`, `0` or `!` that stands for its kind.
_PIECES = re.compile(
    r"<\|(?:start|end)oftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]"
    r"|(?:(?!<\|(?:start|end)oftext\|>)[^a-z0-9])+"
)
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")

_WORDS_KEPT = 50_000  # a few megabytes


def merges() -> list[tuple[str, str]]:
    """Pairs of symbols that become one, the first ones first."""
    packed = resources.files("sd_core.vocab").joinpath(_VOCABULARY).read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")
    return [(first, second) for first, second in map(str.split, lines[1 : _MERGES + 1])]


def byte_symbols() -> list[str]:
    """A printable character for each byte, in the order that numbers the first 256 entries.

    Printable Latin-1 bytes stand for themselves and come first; the others follow, moved to
    code points from 256 on (the byte-level BPE of GPT-2, Radford et al. 2019).
    """
    return [symbol for _, symbol in _byte_table()]


def count_tokens(text: str) -> int:
    """Tokens of a text, without start and end."""
    return sum(map(_counts().__getitem__, _words(text)))


def tokens_over(text: str) -> int:
    """Tokens of a prompt beyond those that the text encoder reads, which it cuts off; mostly 0.

    Quick for short texts, of which a job may have a million.
    """
    # No token is less than a byte, and in ASCII none of the bytes changes.
    if len(text) <= PROMPT_TOKENS and text.isascii():
        return 0
    return max(0, count_tokens(text) - PROMPT_TOKENS)


def first_word_over(text: str) -> str:
    """The first word of a prompt that is cut off, or cut into. Raises `ValueError` if none is."""
    tokens = 0
    for word in _words(text):
        tokens += _counts()[word]
        if tokens > PROMPT_TOKENS:
            return word
    raise ValueError(f"a prompt of {tokens} tokens is not cut")


def _words(text: str) -> list[str]:
    """The parts between spaces, as CLIP sees them: composed, in lower case."""
    if not text.isascii():
        # Python writes a sigma at the end of a word in another way, letter by letter does not.
        text = unicodedata.normalize("NFC", text).replace("Σ", "σ")
    return text.lower().split()


class _Counts(dict[str, int]):
    """Word -> how many tokens it has."""

    def __init__(self) -> None:
        super().__init__()
        self._ranks = {pair: rank for rank, pair in enumerate(merges())}
        self._symbols = dict(_byte_table())

    def __missing__(self, word: str) -> int:
        if len(self) >= _WORDS_KEPT:
            self.clear()
        kinds = word if word.isascii() else "".join(map(_kind, word))
        count = sum(
            self._tokens(word[piece.start() : piece.end()]) for piece in _PIECES.finditer(kinds)
        )
        self[word] = count
        return count

    def _tokens(self, piece: str) -> int:
        """Tokens of a piece: its bytes, after all merges, the earliest in the list first.

        Takes n log n steps for n bytes: a prompt may be ten thousand letters without a space.
        """
        if (len(piece) == 1 and piece.isascii()) or piece in _SPECIAL:
            return 1
        symbols = [self._symbols[byte] for byte in piece.encode("utf-8", "surrogatepass")]
        symbols[-1] += "</w>"
        end = len(symbols)
        following, before = list(range(1, end + 1)), list(range(-1, end - 1))
        waiting: list[tuple[int, int, tuple[str, str]]] = []

        def look(left: int, right: int) -> None:
            if left >= 0 and right < end:
                pair = symbols[left], symbols[right]
                rank = self._ranks.get(pair)
                if rank is not None:
                    heapq.heappush(waiting, (rank, left, pair))

        for left in range(end - 1):
            look(left, left + 1)
        count = end
        while waiting:
            _, left, pair = heapq.heappop(waiting)
            right = following[left]
            if right >= end or pair != (symbols[left], symbols[right]):
                continue  # one of them was merged meanwhile
            symbols[left], symbols[right] = "".join(pair), ""
            following[left] = following[right]
            if following[left] < end:
                before[following[left]] = left
            count -= 1
            look(before[left], left)
            look(left, following[left])
        return count


@cache
def _counts() -> _Counts:
    return _Counts()  # reading the vocabulary takes a tenth of a second


def _byte_table() -> list[tuple[int, str]]:
    """Each byte and its symbol, in the vocabulary's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    moved = [(byte, chr(256 + number)) for number, byte in enumerate(others)]
    return [(byte, chr(byte)) for byte in printable] + moved


def _kind(character: str) -> str:
    """The character itself, or an ASCII one of its kind: letter, number, or something else."""
    if character.isascii():
        return character
    kind = unicodedata.category(character)[0]
    return "a" if kind == "L" else "0" if kind == "N" else "!"
