"""Embeddings that a manifest uses: those that it lists, and with syntax a1111 those whose names
stand in its prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from jobs.manifest.input_images import Inputs
from jobs.manifest.named_files import FileRules, Kind, KnownFile, NamedFiles
from jobs.task import EmbeddingUse
from sd_core.prompt.embedding_names import EmbeddingNames, finder
from sd_core.spec import MOST_EMBEDDINGS
from sd_core.weights.embedding_header import check_embedding

Listing = tuple[str, str, str | None]
"""The values of a `KnownFile`, as entries keep them."""

EMBEDDING = Kind("embedding", "embeddings", unnamed="", check=check_embedding)


class Embeddings(NamedFiles):
    """The embeddings of one manifest.

    in_texts: those that prompts with syntax a1111 have named, by name.
    """

    def __init__(self, inputs: Inputs, rules: FileRules) -> None:
        super().__init__(EMBEDDING, inputs, rules)
        self.in_texts: dict[str, KnownFile] = {}

    @cached_property
    def _names(self) -> EmbeddingNames:
        return EmbeddingNames(self.names)

    def look(self, text: str) -> Iterator[str]:
        """Finds those whose names stand in a text; why some cannot be used."""
        for found in self._names.find(text):
            if found.name not in self.in_texts:
                try:
                    self.in_texts[found.name] = self.find(found.name)
                except ValueError as error:
                    yield str(error)

    def too_many(self, texts: tuple[str, str], listed: Iterable[Listing]) -> str | None:
        """Why an image's prompts name more than one can have; mostly None. listed: besides."""
        known = {**self.in_texts, **known_by_name(listed)}
        count = len(uses_in(texts, known)) if known else 0
        if count > MOST_EMBEDDINGS:
            return f"{count} embeddings are named; at most {MOST_EMBEDDINGS} may be"
        return None


def known_by_name(listed: Iterable[Listing]) -> dict[str, KnownFile]:
    """The embeddings that an entry lists."""
    return {one[0]: KnownFile(*one) for one in listed}


def uses_in(texts: tuple[str, str], known: Mapping[str, KnownFile]) -> tuple[EmbeddingUse, ...]:
    """The embeddings that an image's prompts name, in order. known: by name."""
    names = finder(tuple(known))
    found = dict.fromkeys(one.name for text in texts for one in names.find(text))
    return tuple(EmbeddingUse(*known[name]) for name in found)
