"""Embeddings of the images in the engine, kept on the CPU: each is a few hundred kilobytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

from sd_core.engine.request import Embedding, check_file
from sd_core.model.embeddings import Embeddings, TokenVectors
from sd_core.weights.embeddings import read_embedding
from sd_core.weights.errors import CheckpointError

KEPT = 1000
MOST_BYTES = 8 * 2**20
"""A file of 75 vectors in float32 has 225 KiB at v1 size."""


class EmbeddingCache:
    """The latest used embeddings. Threads may share it. width: of the text encoder."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._kept: OrderedDict[str, TokenVectors] = OrderedDict()  # by sha256, oldest use first
        self._next_id = -1
        self._lock = threading.Lock()

    def get(self, wanted: Sequence[Embedding]) -> Embeddings:
        """Vectors by name. Raises `CheckpointError` for a file that cannot be used."""
        with self._lock:
            found = tuple((one.name, self._vectors(one)) for one in wanted)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found

    def _vectors(self, wanted: Embedding) -> TokenVectors:
        if wanted.sha256 not in self._kept:
            vectors = self._read(wanted)
            ids = tuple(range(self._next_id, self._next_id - len(vectors), -1))
            self._next_id -= len(vectors)
            self._kept[wanted.sha256] = TokenVectors(ids, vectors)
        self._kept.move_to_end(wanted.sha256)
        return self._kept[wanted.sha256]

    def _read(self, wanted: Embedding) -> Tensor:
        try:
            size = wanted.file.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{wanted.file}: cannot be read: {error.strerror}") from None
        if size > MOST_BYTES:
            raise CheckpointError(f"{wanted.file}: {size:,} bytes are too many for an embedding")
        check_file(wanted)
        return read_embedding(wanted.file, self._width)
