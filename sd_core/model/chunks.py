"""Prompts as chunks of 75 tokens, each of which the text encoder reads by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sd_core.model.embeddings import Embeddings, TokenVectors
from sd_core.model.tokenizer import PromptTokenizer
from sd_core.prompt.conditions import PromptText
from sd_core.prompt.embedding_names import EmbeddingNames, finder
from sd_core.prompt.emphasis import Section
from sd_core.vocab.bpe import MOST_CHUNKS, PROMPT_TOKENS

COMMA_WITHIN = 20
"""A chunk ends at a comma among its last so many tokens, where it is to."""


class Chunk(NamedTuple):
    """ids: 77 of them, start, end and padding included; below 0 of embeddings. weights: of each;
    empty where all are 1. emphasis, clip_skip: see `PromptText`.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...] = ()
    emphasis: str = "none"
    clip_skip: int = 1


class _Token(NamedTuple):
    id: int
    weight: float


_Piece = list[_Token]
"""Tokens that stay together: mostly one, of an embedding all its vectors."""


def chunks_of(
    text: PromptText, tokenizer: PromptTokenizer, embeddings: Embeddings = ()
) -> tuple[Chunk, ...]:
    """The chunks of a prompt, at least one; where names of embeddings stand, their vectors.

    Raises `ValueError` for more than `MOST_CHUNKS`.
    """
    names = finder(tuple(name for name, _ in embeddings))
    if not any(True for section in text.sections for one in section for _ in names.find(one.text)):
        whole = _whole(text, tokenizer)
        if whole is not None:
            return (whole,)
    known = dict(embeddings)
    chunks = [
        chunk
        for section in text.sections
        for chunk in _split(
            _pieces(section, tokenizer, names, known), tokenizer.comma, commas=text.commas
        )
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


def _pieces(
    section: Section,
    tokenizer: PromptTokenizer,
    names: EmbeddingNames,
    known: Mapping[str, TokenVectors],
) -> Iterable[_Piece]:
    for text, weight in section:
        begin = 0
        for found in names.find(text):
            yield from _words(text[begin : found.begin], weight, tokenizer)
            yield [_Token(number, weight) for number in known[found.name].ids]
            begin = found.end
        yield from _words(text[begin:], weight, tokenizer)


def _words(text: str, weight: float, tokenizer: PromptTokenizer) -> Iterable[_Piece]:
    return ([_Token(number, weight)] for number in tokenizer.ids(text))


def _split(pieces: Iterable[_Piece], comma: int, *, commas: bool) -> list[list[_Token]]:
    """Lists of at most 75 tokens, at least one list."""
    chunks: list[list[_Token]] = [[]]
    for piece in pieces:
        chunk = chunks[-1]
        if len(chunk) + len(piece) > PROMPT_TOKENS:
            rest: list[_Token] = []
            if commas and len(piece) == 1 and piece[0].id != comma:
                places = [at for at, one in enumerate(chunk) if one.id == comma]
                if places and PROMPT_TOKENS - places[-1] <= COMMA_WITHIN:
                    rest = chunk[places[-1] + 1 :]
                    del chunk[places[-1] + 1 :]
            chunks.append(rest)
        chunks[-1] += piece
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
