"""The CLIP byte-pair tokenizer over the vocabulary that the package ships.

A single-file checkpoint carries no tokenizer, so the 49,408 entries of CLIP's own vocabulary
(Radford et al. 2021; licence beside the file) come with this package, through transformers.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MAX_TOKENS = 77
_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49_152 - 256 - 2  # CLIP keeps this many of the file's merges
_START, _END = "<|startoftext|>", "<|endoftext|>"


@cache
def clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer of CLIP ViT-L/14: 77 ids, padded with the end token, longer prompts cut."""
    from transformers import CLIPTokenizer  # takes longer than torch to import

    packed = resources.files("sd_core.vocab").joinpath(_VOCABULARY).read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")
    merges = [(first, second) for first, second in map(str.split, lines[1 : _MERGES + 1])]
    symbols = list(_byte_symbols())
    symbols += [symbol + "</w>" for symbol in symbols]
    symbols += [first + second for first, second in merges]
    symbols += [_START, _END]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,  # type: ignore[arg-type]  # pairs, as the tokenizers library takes them
        model_max_length=MAX_TOKENS,
    )


def _byte_symbols() -> list[str]:
    """A printable character for each byte, in the order that numbers the first 256 entries.

    Printable Latin-1 bytes stand for themselves and come first; the others follow, moved to
    code points from 256 on (the byte-level BPE of GPT-2, Radford et al. 2019).
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = len([b for b in range(256) if b not in set(printable)])
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(moved)]


def tokenize(prompts: list[str]) -> list[list[int]]:
    """77 token ids for each prompt: start, the prompt's (at most 75), end, padding."""
    encoded = clip_tokenizer()(
        prompts, padding="max_length", truncation=True, max_length=MAX_TOKENS
    )
    return encoded["input_ids"]
