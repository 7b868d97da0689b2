"""Vectors that a prompt brings along, in place of those of tokens: embeddings, as textual inversion
makes them (Gal et al. 2022).

Their ids are below 0 and no other's, so a chunk's ids say all that it is made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TokenVectors:
    """An embedding. ids: of its vectors, in order. vectors: (n, width) float32 on the CPU."""

    ids: tuple[int, ...]
    vectors: Tensor = field(compare=False, repr=False)


Embeddings = tuple[tuple[str, TokenVectors], ...]
"""Embeddings of an image, by the names that stand for them in its prompts."""


class TokenTable(nn.Embedding):
    """A table of tokens' vectors, which also knows some ids below 0 for a while."""

    brought: Mapping[int, Tensor]

    def forward(self, ids: Tensor) -> Tensor:
        vectors = super().forward(ids.clamp(min=0))
        for number, vector in self.brought.items():
            here = (ids == number)[..., None]
            vectors = torch.where(here, vector.to(vectors.device, vectors.dtype), vectors)
        return vectors


def make_open(table: nn.Module) -> None:
    """Makes a library's table of tokens a `TokenTable`, in place."""
    table.__class__ = TokenTable
    cast(TokenTable, table).brought = {}


@contextmanager
def bringing(table: nn.Module, vectors: Mapping[int, Tensor]) -> Iterator[None]:
    """Has an open table know these vectors (width,) by their ids meanwhile."""
    opened = cast(TokenTable, table)
    try:
        opened.brought = vectors
        yield
    finally:
        opened.brought = {}
