"""Refuses sizes that no model has, before anything of those sizes is built.

Configurations come with the files, so they are as trustworthy as these: a text where a number
belongs, or a billion layers, must end in an error and not in a traceback or a full memory.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from sd_core.spec import ModelSpec
from sd_core.tokenizer import MAX_TOKENS
from sd_core.weights.errors import CheckpointError

CLIP_VOCABULARY = 49_408
"""Entries of the vocabulary that prompts are tokenized with."""

MAX_SIZE = 1_000_000
MAX_DEPTH = 100  # layers of one kind in a row; v1 has 12
MAX_LEVELS = 8  # v1 has 4
ACTIVATIONS = ("quick_gelu", "gelu")  # of ViT-L/14, and of other CLIP text towers

_DEPTHS = ("layers", "num_res_blocks")


def check_sizes(spec: ModelSpec, source: str) -> None:
    """Raises `CheckpointError` naming the first size that is of a wrong type or out of range."""
    for component in ("unet", "vae", "text"):
        sizes = getattr(spec, component)
        for field in dataclasses.fields(sizes):
            value = getattr(sizes, field.name)
            expected = _expected(field.name, value, field.default)
            if expected is not None:
                raise CheckpointError(
                    f"{source}: the {component}'s {field.name} is {value!r:.60}; "
                    f"expected {expected}"
                )
    text = spec.text
    if text.length != MAX_TOKENS or text.vocab_size < CLIP_VOCABULARY:
        raise CheckpointError(
            f"{source}: its text encoder takes {text.length} tokens of a vocabulary of "
            f"{text.vocab_size}; expected CLIP's {MAX_TOKENS} tokens of {CLIP_VOCABULARY}"
        )
    if text.width % text.heads:
        raise CheckpointError(
            f"{source}: the text's width {text.width} does not divide into {text.heads} heads"
        )


def _expected(name: str, value: Any, default: Any) -> str | None:
    """What a size should have been, None where it is sound. default: one of the same type."""
    if isinstance(default, str):
        return None if value in ACTIVATIONS else f"one of {', '.join(ACTIVATIONS)}"
    if isinstance(default, float):
        sound = isinstance(value, int | float) and math.isfinite(value) and value > 0
        return None if sound else "a number above 0"
    limit = MAX_DEPTH if name in _DEPTHS else MAX_SIZE
    if isinstance(default, int):
        return None if _is_size(value, limit) else f"a number within 1 to {limit}"
    flags = isinstance(default[0], bool)
    each = (isinstance(v, bool) if flags else _is_size(v, limit) for v in value)
    return None if len(value) <= MAX_LEVELS and all(each) else f"at most {MAX_LEVELS} sound levels"


def _is_size(value: Any, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= limit
