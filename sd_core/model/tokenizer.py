"""CLIP's byte-pair tokenizer, over the vocabulary that the package ships or a model's own.

A single-file checkpoint carries no tokenizer, so the 49,408 entries of CLIP's own vocabulary
(Radford et al. 2021; licence beside the file) come with this package, through transformers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, NamedTuple

from sd_core.vocab.bpe import PROMPT_TOKENS, byte_symbols, merges

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MAX_TOKENS = PROMPT_TOKENS + 2
_START, _END = "<|startoftext|>", "<|endoftext|>"

DEFAULT_NAMES = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
"""Entries of CLIP's own vocabulary that have a role, as transformers calls them."""

Merges = tuple[tuple[str, str], ...]


class Entry(NamedTuple):
    """A text that is found in a prompt before that is cut into words.

    single_word: only where it is a word of its own. lstrip, rstrip: takes the spaces beside it.
    normalized: found after the prompt was brought into lower case. special: has a role.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


@dataclass(frozen=True)
class TokenizerSpec:
    """A byte-pair tokenizer of CLIP's kind, with everything that the ids of a prompt depend on.

    vocabulary: numbers from 0 on. merges: the first ones first. names: role -> content. entries:
    those that are not in the vocabulary get the next numbers, in this order. padding_side,
    truncation_side: "right" or "left".
    """

    vocabulary: Mapping[str, int]
    merges: Merges
    names: Mapping[str, str]
    entries: tuple[Entry, ...]
    padding_side: str = "right"
    truncation_side: str = "right"

    @cached_property
    def numbered(self) -> dict[int, Entry]:
        """The entries by their ids."""
        new = (e for e in self.entries if e.content not in self.vocabulary)
        ids = {entry.content: number for number, entry in enumerate(new, len(self.vocabulary))}
        return {ids.get(e.content, self.vocabulary.get(e.content, 0)): e for e in self.entries}

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(len(self.vocabulary), *(number + 1 for number in self.numbered))

    @property
    def digest(self) -> str:
        """sha256 in hex over all of it."""
        said = [
            sorted(self.vocabulary.items()),
            self.merges,
            sorted(self.names.items()),
            sorted((number, *entry) for number, entry in self.numbered.items()),
            self.padding_side,
            self.truncation_side,
        ]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


class PromptTokenizer:
    """Prompts -> token ids. spec: of a model's own tokenizer; CLIP's own by default."""

    def __init__(self, spec: TokenizerSpec | None = None) -> None:
        self.spec = spec

    @cached_property
    def library(self) -> CLIPTokenizer:
        """transformers' tokenizer that does it."""
        return clip_tokenizer() if self.spec is None else _build(self.spec)

    @cached_property
    def _parts(self) -> dict[str, str]:
        """Added token -> what stands for it, where it has several vectors: it, it_1, it_2, …"""
        added = self.library.added_tokens_encoder
        parts = {}
        for token in sorted(added):
            count = 1
            while count < MAX_TOKENS and f"{token}_{count}" in added:  # more would be cut off
                count += 1
            if count > 1:
                parts[token] = " ".join([token, *(f"{token}_{n}" for n in range(1, count))])
        return parts

    def __call__(self, prompts: list[str]) -> list[list[int]]:
        """77 ids for each prompt: start, the prompt's (at most 75), end, padding."""
        encoded = self.library(
            [self._spelled_out(prompt) for prompt in prompts] if self._parts else prompts,
            padding="max_length",
            truncation=True,
            max_length=MAX_TOKENS,
        )
        return encoded["input_ids"]

    def ids(self, text: str) -> list[int]:
        """All ids of a text, without start, end and padding."""
        words = self._spelled_out(text) if self._parts else text
        return self.library(words, add_special_tokens=False, truncation=False)["input_ids"]

    def framed(self, ids: Sequence[int]) -> list[int]:
        """77 ids from at most 75: with start, end and padding, as a call gives them."""
        library = self.library
        own = [library.bos_token_id, *ids, library.eos_token_id]
        padding = [library.pad_token_id] * (MAX_TOKENS - len(own))
        return [*padding, *own] if self._pads_left else [*own, *padding]

    def first(self, count: int) -> int:
        """The place of the first of so many ids in what `framed` gives."""
        return MAX_TOKENS - count - 1 if self._pads_left else 1

    @cached_property
    def comma(self) -> int:
        """The id of a comma."""
        return self.ids(",")[0]

    @property
    def _pads_left(self) -> bool:
        return self.spec is not None and self.spec.padding_side == "left"

    def _spelled_out(self, prompt: str) -> str:
        """The prompt with all vectors of tokens that have several, as diffusers does it."""
        found = set(self.library.tokenize(prompt))
        for token, parts in self._parts.items():
            if token in found:
                prompt = prompt.replace(token, parts)
        return prompt


@cache
def clip_vocabulary() -> tuple[dict[str, int], Merges]:
    """(vocabulary, merges) of CLIP ViT-L/14."""
    pairs = merges()
    symbols = byte_symbols()
    symbols += [symbol + "</w>" for symbol in symbols]
    symbols += [first + second for first, second in pairs]
    symbols += [_START, _END]
    return {symbol: index for index, symbol in enumerate(symbols)}, tuple(pairs)


@cache
def clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer of CLIP ViT-L/14: 77 ids, padded with the end token, longer prompts cut."""
    from transformers import CLIPTokenizer  # takes longer than torch to import

    vocabulary, pairs = clip_vocabulary()
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=list(pairs),  # type: ignore[arg-type]  # pairs, as the tokenizers library takes them
        model_max_length=MAX_TOKENS,
    )


def _build(spec: TokenizerSpec) -> CLIPTokenizer:
    from transformers import AddedToken, CLIPTokenizer

    entries = {number: AddedToken(**e._asdict()) for number, e in spec.numbered.items()}
    return CLIPTokenizer(
        vocab=dict(spec.vocabulary),
        merges=list(spec.merges),  # type: ignore[arg-type]
        added_tokens_decoder=entries,
        padding_side=spec.padding_side,
        truncation_side=spec.truncation_side,
        model_max_length=MAX_TOKENS,
        **spec.names,
    )


_clip = PromptTokenizer()


def tokenize(prompts: list[str]) -> list[list[int]]:
    """77 token ids for each prompt, by CLIP's own vocabulary. See `PromptTokenizer`."""
    return _clip(prompts)
