"""The CLIP byte-pair tokenizer over the vocabulary that the package ships.

A single-file checkpoint carries no tokenizer, so the 49,408 entries of CLIP's own vocabulary
(Radford et al. 2021; licence beside the file) come with this package, through transformers.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from sd_core.bpe import PROMPT_TOKENS, byte_symbols, merges

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MAX_TOKENS = PROMPT_TOKENS + 2
_START, _END = "<|startoftext|>", "<|endoftext|>"


@cache
def clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer of CLIP ViT-L/14: 77 ids, padded with the end token, longer prompts cut."""
    from transformers import CLIPTokenizer  # takes longer than torch to import

    pairs = merges()
    symbols = byte_symbols()
    symbols += [symbol + "</w>" for symbol in symbols]
    symbols += [first + second for first, second in pairs]
    symbols += [_START, _END]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=pairs,  # type: ignore[arg-type]  # pairs, as the tokenizers library takes them
        model_max_length=MAX_TOKENS,
    )


def tokenize(prompts: list[str]) -> list[list[int]]:
    """77 token ids for each prompt: start, the prompt's (at most 75), end, padding."""
    encoded = clip_tokenizer()(
        prompts, padding="max_length", truncation=True, max_length=MAX_TOKENS
    )
    return encoded["input_ids"]
