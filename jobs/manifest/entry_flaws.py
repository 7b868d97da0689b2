"""Flaws of an entry's prompts, in every combination of the matrix."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import fields
from typing import Any

from jobs.formatting import quote
from jobs.image_settings import SETTINGS
from jobs.limits import MAX_PROMPT_CHARS
from jobs.manifest.dynamic.fill import Templates
from jobs.manifest.dynamic.template import TemplateError
from jobs.manifest.entries import Combination, Entry
from jobs.manifest.files import Files
from jobs.manifest.lora_lists import tag_flaws
from jobs.manifest.prompt_flaws import flaw_of
from jobs.manifest.scalars import unreadable
from sd_core.prompt.conditions import PromptReader

Flaws = dict[str, str]
"""Flaw -> the key whose text has it: prompt or negative."""


class EntryFlaws:
    """Looks at the prompts of entries. files: that prompts may name. templates: makes choices."""

    def __init__(
        self, files: Files, templates: Templates, combinations: Sequence[Combination]
    ) -> None:
        self._files = files
        self._templates = templates
        self._combinations = combinations
        self._readings = functools.lru_cache(maxsize=4096)(self._different_readings)

    def of(self, entry: Entry) -> Flaws:
        """Why prompts of an entry cannot be read, for some combination."""
        if entry.dynamic != "none":
            return self._template_flaws(entry)
        flaws: dict[str, str] = {}
        for reader, combination in self._readings(entry.settings):
            negative = entry.negative if combination.negative is None else combination.negative
            prompt = combination.prompt(entry.prompt)
            if reader.syntax == "a1111":
                used = entry.loras if combination.loras is None else combination.loras
                prompt, wrong = tag_flaws(self._files.loras, prompt, used)
                flaws |= dict.fromkeys(wrong, "prompt")
                for key, text in (("prompt", prompt), ("negative", negative)):
                    flaws |= dict.fromkeys(self._files.embeddings.look(text), key)
                many = self._files.embeddings.too_many((prompt, negative), entry.embeddings)
                flaws |= {} if many is None else {many: "prompt"}
            if combination.replaced is not None and combination.replaced[0] not in entry.prompt:
                flaws[f"has no {quote(combination.replaced[0])}, which matrix replaces"] = "prompt"
            for key, text in (("prompt", prompt), ("negative", negative)):
                flaw = flaw_of(reader, key, text)
                if flaw is not None:
                    flaws[flaw] = key
        return flaws

    def of_filled(self, entry: Entry) -> Flaws:
        """Flaws of filled prompts, with those that a manifest's own texts cannot have any more."""
        for key, text in (("prompt", entry.prompt), ("negative", entry.negative)):
            if len(text) > MAX_PROMPT_CHARS:
                return {f"it has more than {MAX_PROMPT_CHARS:,} characters": key}
            if (bad := unreadable(text)) is not None:
                return {f"character {bad} is not allowed": key}
        return self.of(entry)

    def _different_readings(
        self, settings: tuple[Any, ...]
    ) -> tuple[tuple[PromptReader, Combination], ...]:
        """The combinations in which prompts are read in different ways, mostly one of all."""
        different: dict[Hashable, tuple[PromptReader, Combination]] = {}
        for combination in self._combinations:
            reader = _reader(combination.apply(settings))
            loras = None if combination.loras is None else len(combination.loras)
            key = reader, combination.negative, combination.replaced, loras
            different.setdefault(key, (reader, combination))
        return tuple(different.values())

    def _template_flaws(self, entry: Entry) -> Flaws:
        flaws = {}
        for key, text in (("prompt", entry.prompt), ("negative", entry.negative)):
            try:
                self._templates.check(text)
                if entry.dynamic == "combinatorial":
                    self._templates.count(text)
            except TemplateError as error:
                flaws[f"{error} (at character {error.offset + 1})"] = key
        return flaws


@functools.lru_cache(maxsize=4096)
def _reader(settings: tuple[Any, ...]) -> PromptReader:
    values = dict(zip(SETTINGS, settings, strict=True))
    return PromptReader(**{field.name: values[field.name] for field in fields(PromptReader)})
