"""The JSON header of a safetensors file. No torch: manifests' adapters are looked at without it."""

from __future__ import annotations

import mmap
from typing import Any

from sd_core.weights.errors import CheckpointError, named
from sd_core.weights.json_text import parse_json

MAX_HEADER_BYTES = 16 * 2**20
"""A v1 model's header takes some 150 kB; the rest is for whatever metadata people keep there."""

MAX_VALUES = 500_000
"""Numbers, texts, lists and objects in a header; a tensor takes about 12."""

_FORMAT_LIMIT = 100_000_000  # of a header, in the format's own library

Bytes = bytes | mmap.mmap


def begins_as_safetensors(data: Bytes) -> bool:
    """True if a file begins as one: a plausible header length, then a JSON object."""
    length = int.from_bytes(data[:8], "little")
    return data[8:9] == b"{" and 2 <= length <= _FORMAT_LIMIT


def read_header(data: Bytes, where: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """(where the tensors' bytes begin, descriptions of the tensors by name, metadata).

    where: the file, for messages. Raises `CheckpointError` for a damaged header; what it says of a
    tensor is not looked at.
    """
    length = int.from_bytes(data[:8], "little")
    start = 8 + length
    if start > len(data):
        raise CheckpointError(
            f"{where}: the file is cut short: its header ends at byte {start}, it has {len(data)}; "
            "download it again"
        )
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{where}: its safetensors header has {length} bytes, expected at most "
            f"{MAX_HEADER_BYTES}"
        )
    try:
        header = parse_json(data[8:start], max_values=MAX_VALUES, unique=True)
    except ValueError as error:
        raise CheckpointError(
            f"{where}: its safetensors header is not valid JSON: {named(str(error))}"
        ) from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{where}: its safetensors header is damaged (__metadata__)")
    return start, header, metadata


def shape_in(entry: Any) -> tuple[int, ...]:
    """The shape that a header gives a tensor; () where it is damaged, which loading will say."""
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(type(side) is int for side in shape):
        return ()
    return tuple(shape)
