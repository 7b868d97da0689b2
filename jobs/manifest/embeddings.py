"""Embeddings that a manifest uses: those that it lists, and with syntax a1111 those whose names
stand in its prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

from jobs.manifest.input_images import Inputs
from jobs.manifest.named_files import FileRules, Kind, KnownFile, NamedFiles
from jobs.task import EmbeddingUse
from sd_core.prompt.embedding_names import EmbeddingNames, finder
from sd_core.weights.embedding_header import check_embedding

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


def uses_in(texts: tuple[str, str], known: Mapping[str, KnownFile]) -> tuple[EmbeddingUse, ...]:
    """The embeddings that an image's prompts name, in order. known: by name."""
    names = finder(tuple(known))
    found = dict.fromkeys(one.name for text in texts for one in names.find(text))
    return tuple(EmbeddingUse(*known[name]) for name in found)
