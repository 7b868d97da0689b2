"""Prompts that cannot be read: the syntax is broken, or they are too long for the model."""

from __future__ import annotations

from functools import lru_cache

from sd_core.prompt.conditions import PromptReader
from sd_core.prompt.errors import PromptError
from sd_core.vocab.bpe import MOST_CHUNKS, PROMPT_TOKENS, count_tokens

_MOST_TOKENS = MOST_CHUNKS * PROMPT_TOKENS


@lru_cache(maxsize=4096)
def flaw_of(reader: PromptReader, key: str, text: str) -> str | None:
    """Why a text cannot be read; None if it can. key: prompt or negative."""
    # No token is less than a byte. Most prompts are plain and short, and need no look.
    if reader.long_prompts == "chunk" and len(text.encode()) > _MOST_TOKENS:
        tokens = count_tokens(text)
        if tokens > _MOST_TOKENS:
            return (
                f"{tokens:,} tokens are more than the {_MOST_TOKENS:,} that can be read; shorten "
                "it, or set long_prompts to cut"
            )
    if reader.syntax == "plain":
        return None
    try:
        _ = reader.prompt(text) if key == "prompt" else reader.negative(text)
    except PromptError as error:
        return f"{error} (at character {error.offset + 1})"
    return None
