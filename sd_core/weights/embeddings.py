"""Embeddings (textual inversion) from their files: AUTOMATIC1111's and diffusers'."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sd_core.weights.embedding_header import vectors_in
from sd_core.weights.errors import CheckpointError, named
from sd_core.weights.single_file import read_weights


def read_embedding(path: Path, width: int) -> Tensor:
    """The vectors in a file, (n, width) float32, n within 1 to 75; a single one may be (width,).

    width: of the text encoder. Raises `CheckpointError` for a file of something else or of another
    kind of model.
    """
    stored = read_weights(path).tensors
    name = vectors_in({key: tuple(tensor.shape) for key, tensor in stored.items()}, str(path))
    tensor = stored[name]
    if not tensor.dtype.is_floating_point:
        raise CheckpointError(f"{path}: {named(name)} is {tensor.dtype}; expected floating point")
    if tensor.shape[-1] != width:
        raise CheckpointError(
            f"{path}: its vectors have width {tensor.shape[-1]}; the text encoder has {width}"
        )
    vectors = tensor.view().clone().float().reshape(-1, width)
    if not vectors.isfinite().all():
        raise CheckpointError(f"{path}: it holds numbers that are not finite")
    return vectors
