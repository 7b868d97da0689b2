"""Prompts as chunks of 75 tokens, each of which the text encoder reads by itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sd_core.model.tokenizer import PromptTokenizer
from sd_core.prompt.conditions import PromptText
from sd_core.prompt.emphasis import Section
from sd_core.vocab.bpe import MOST_CHUNKS, PROMPT_TOKENS

COMMA_WITHIN = 20
"""A chunk ends at a comma among its last so many tokens, where it is to."""


class Chunk(NamedTuple):
    """ids: 77 of them, start, end and padding included. weights: of each; empty where all are 1.
    emphasis, clip_skip: see `PromptText`.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...] = ()
    emphasis: str = "none"
    clip_skip: int = 1


class _Token(NamedTuple):
    id: int
    weight: float


def chunks_of(text: PromptText, tokenizer: PromptTokenizer) -> tuple[Chunk, ...]:
    """The chunks of a prompt, at least one. Raises `ValueError` for more than `MOST_CHUNKS`."""
    whole = _whole(text, tokenizer)
    if whole is not None:
        return (whole,)
    chunks = [
        chunk
        for section in text.sections
        for chunk in _split(_tokens(section, tokenizer), tokenizer.comma, commas=text.commas)
    ]
    if text.cut:
        chunks = chunks[:1]
    if len(chunks) > MOST_CHUNKS:
        raise ValueError(
            f"the prompt takes {len(chunks)} chunks of {PROMPT_TOKENS} tokens; at most "
            f"{MOST_CHUNKS} may be, or set long_prompts to cut"
        )
    return tuple(_chunk(tokens, text, tokenizer) for tokens in chunks)


def _whole(text: PromptText, tokenizer: PromptTokenizer) -> Chunk | None:
    """The one chunk of a prompt without weights that fits into one, or is cut to it."""
    fragments = [fragment for section in text.sections for fragment in section]
    if len(text.sections) > 1 or any(fragment.weight != 1.0 for fragment in fragments):
        return None
    words = "".join(fragment.text for fragment in fragments)
    if not text.cut and len(tokenizer.ids(words)) > PROMPT_TOKENS:
        return None
    (ids,) = tokenizer([words])
    return Chunk(tuple(ids), clip_skip=text.clip_skip)


def _tokens(section: Section, tokenizer: PromptTokenizer) -> Iterable[_Token]:
    for fragment in section:
        for number in tokenizer.ids(fragment.text):
            yield _Token(number, fragment.weight)


def _split(tokens: Iterable[_Token], comma: int, *, commas: bool) -> list[list[_Token]]:
    """Lists of at most 75 tokens, at least one list."""
    chunks: list[list[_Token]] = [[]]
    for token in tokens:
        chunk = chunks[-1]
        if len(chunk) == PROMPT_TOKENS:
            rest: list[_Token] = []
            if commas and token.id != comma:
                places = [at for at, one in enumerate(chunk) if one.id == comma]
                if places and PROMPT_TOKENS - places[-1] <= COMMA_WITHIN:
                    rest = chunk[places[-1] + 1 :]
                    del chunk[places[-1] + 1 :]
            chunks.append(rest)
        chunks[-1].append(token)
    return chunks


def _chunk(tokens: list[_Token], text: PromptText, tokenizer: PromptTokenizer) -> Chunk:
    ids = tokenizer.framed([token.id for token in tokens])
    begin = tokenizer.first(len(tokens))
    weights = [1.0] * len(ids)
    weights[begin : begin + len(tokens)] = [token.weight for token in tokens]
    weighted = text.emphasis != "none" and any(weight != 1.0 for weight in weights)
    return Chunk(
        tuple(ids),
        tuple(weights) if weighted else (),
        text.emphasis if weighted else "none",
        text.clip_skip,
    )
