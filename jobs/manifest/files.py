"""The files that a manifest names, by their kinds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jobs.manifest.embeddings import Embeddings
from jobs.manifest.named_files import NamedFiles
from jobs.manifest.vaes import Vaes


@dataclass(frozen=True)
class Files:
    """LoRA, embeddings and VAEs of one manifest."""

    loras: NamedFiles
    embeddings: Embeddings
    vaes: Vaes

    def __iter__(self) -> Iterator[NamedFiles]:
        return iter((self.loras, self.embeddings, self.vaes))
