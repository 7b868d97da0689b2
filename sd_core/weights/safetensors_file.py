"""Reads the safetensors format: a JSON header, then the tensors' bytes.

The format is small enough to read directly, which gives the offsets that `StoredTensor` needs and
the same memory behaviour as for pickled checkpoints.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch

from sd_core.weights.errors import CheckpointError
from sd_core.weights.stored import MappedFile, StoredTensor

MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own library
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
    """Whether the file begins as one: a plausible header length, then a JSON object."""
    length = int.from_bytes(file.map[:8], "little")
    return file.size > 8 and file.map[8:9] == b"{" and 2 <= length <= MAX_HEADER_BYTES


def read_safetensors(file: MappedFile) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """(tensors by name, the header's metadata). Raises `CheckpointError` on a damaged file."""
    length = int.from_bytes(file.map[:8], "little")
    start = 8 + length
    if start > file.size:
        raise CheckpointError(
            f"{file.path}: the file is cut short: its header ends at byte {start}, "
            f"it has {file.size}; download it again"
        )
    try:
        header = json.loads(file.map[8:start].decode("utf-8"))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{file.path}: its safetensors header is not valid JSON") from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{file.path}: its safetensors header is damaged (__metadata__)")
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
        sound = isinstance(dtype, str) and all(
            isinstance(n, int) and n >= 0 for n in (*shape, first, last)
        )
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise CheckpointError(f"{file.path}: its header describes {name!r} wrongly: {entry!r:.200}")
    if dtype not in _DTYPES:
        raise CheckpointError(
            f"{file.path}: {name} is stored as {dtype}; expected one of {', '.join(_DTYPES)}"
        )
    tensor = StoredTensor(file, start + first, shape, _DTYPES[dtype])
    if last - first != math.prod(shape) * tensor.dtype.itemsize:
        raise CheckpointError(
            f"{file.path}: {name} of shape {shape} and type {dtype} cannot take "
            f"{last - first} bytes"
        )
    return tensor
