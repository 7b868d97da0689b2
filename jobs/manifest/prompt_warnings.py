"""Warnings of prompts that are not drawn as they were meant."""

from __future__ import annotations

from functools import partial

from jobs.formatting import quote
from jobs.manifest.lora_tags import without_tags
from jobs.manifest.problems import Path, Place
from jobs.manifest.prompt_syntax import READ_BY_A1111, foreign_syntax
from jobs.manifest.warnings import WarningList
from sd_core.vocab.bpe import PROMPT_TOKENS, count_tokens, first_word_over, tokens_over

_MEANT_AS = {
    "weights": "weights",
    "networks": "LoRA, embeddings and other networks",
    "parts": "prompts in several parts",
    "wildcards": "wildcards and alternatives",
    "options": "settings, which are keys of a prompt here",
}
"""Kind of `jobs.manifest.prompt_syntax` -> what it stands for elsewhere."""


class PromptWatch:
    """Looks at prompts and negative prompts; what it finds goes to `warnings`."""

    def __init__(self, warnings: WarningList) -> None:
        self._warnings = warnings

    def look(
        self, prompt: str, place: Place, path: Path, *, plain: bool, cut: bool, dynamic: bool
    ) -> None:
        """Note what is left out of a prompt, and what is drawn as text though it is syntax.

        plain, cut: whether an image is to read it so. dynamic: choices in it are made.
        """
        if cut and tokens_over(prompt):
            self._warnings.at("tokens", place, path, partial(_cut, prompt))
        for kind, example in foreign_syntax(prompt):
            known = kind in READ_BY_A1111 and not plain
            if not known and not (dynamic and kind == "wildcards"):
                self._warnings.at(kind, place, path, partial(_as_text, kind, example))


def _cut(prompt: str) -> str:
    return (
        f"{count_tokens(prompt)} tokens, of which the model reads {PROMPT_TOKENS}: it is cut at "
        f"{quote(first_word_over(prompt))}; long_prompts: chunk reads all"
    )


def _as_text(kind: str, example: str) -> str:
    hint = "; syntax: a1111 reads it" if kind in READ_BY_A1111 else ""
    if kind == "networks" and example != without_tags(example):
        hint = "; syntax: a1111 loads it in a prompt"
    if kind == "wildcards":
        hint = "; dynamic: random makes choices"
    return (
        f"{quote(example)} is other programs' syntax for {_MEANT_AS[kind]}; it is drawn as the "
        f"text that it is{hint}"
    )
