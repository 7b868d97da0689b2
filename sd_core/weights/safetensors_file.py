"""Reads the safetensors format: a JSON header, then the tensors' bytes.

The format is small enough to read directly, which gives the offsets that `StoredTensor` needs and
the same memory behaviour as for pickled checkpoints: within the two limits below, reading takes at
most 250 MB and a few seconds, whatever the header holds.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from sd_core.weights.errors import CheckpointError, named, shown
from sd_core.weights.safetensors_header import begins_as_safetensors, read_header
from sd_core.weights.stored import MAX_DIMENSIONS, MappedFile, StoredTensor, is_count

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def looks_like_safetensors(file: MappedFile) -> bool:
    """True if the file begins as one: a plausible header length, then a JSON object."""
    return begins_as_safetensors(file.map)


def read_safetensors(file: MappedFile) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """(tensors by name, the header's metadata). Raises `CheckpointError` on a damaged file."""
    start, header, metadata = read_header(file.map, str(file.path))
    tensors = {name: _tensor(file, start, name, entry) for name, entry in header.items()}
    end = max((t.offset + t.span_bytes for t in tensors.values()), default=start)
    if end > file.size:
        raise CheckpointError(
            f"{file.path}: the file is cut short: it has {file.size} of {end} bytes; "
            "download it again"
        )
    return tensors, metadata


def _tensor(file: MappedFile, start: int, name: str, entry: Any) -> StoredTensor:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        first, last = entry["data_offsets"]
        sound = isinstance(dtype, str) and len(shape) <= MAX_DIMENSIONS
        sound = sound and all(is_count(n) for n in (*shape, first, last))
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise CheckpointError(
            f"{file.path}: its header describes {shown(name)} wrongly: {shown(entry)}"
        )
    if dtype not in _DTYPES:
        raise CheckpointError(
            f"{file.path}: {named(name)} is stored as {named(dtype)}; expected one of "
            f"{', '.join(_DTYPES)}"
        )
    tensor = StoredTensor(file, start + first, shape, _DTYPES[dtype])
    if last - first != math.prod(shape) * tensor.dtype.itemsize:
        raise CheckpointError(
            f"{file.path}: {named(name)} of shape {shape} and type {dtype} cannot take "
            f"{last - first} bytes"
        )
    return tensor
