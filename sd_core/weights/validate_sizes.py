"""Refuses sizes that no model has, before anything of those sizes is built.

Configurations come with the files, so they are as trustworthy as these: a text where a number
belongs, or a billion layers, must end in an error and not in a traceback or a full memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sd_core.model.tokenizer import MAX_TOKENS, TokenizerSpec
from sd_core.spec import MAX_SIDE, ModelSpec, TextSpec, UNetSpec, VAESpec
from sd_core.weights.errors import CheckpointError, shown

if TYPE_CHECKING:
    from sd_core.weights.checkpoint import Checkpoint

Value = TypeVar("Value")

CLIP_VOCABULARY = 49_408
"""Entries of CLIP's own vocabulary."""

MAX_SIZE = 1_000_000
MAX_DEPTH = 100  # layers of one kind in a row; v1 has 12
MAX_LEVELS = 8  # v1 has 4
SHALLOW = 100  # layers that are built without a look at how many weights there are; v1 has 28
ACTIVATIONS = ("quick_gelu", "gelu")  # of ViT-L/14, and of other CLIP text towers

_DEPTHS = ("layers", "num_res_blocks")


Sizes = TypeVar("Sizes", UNetSpec, VAESpec, TextSpec)
_COMPONENTS = {UNetSpec: "unet", VAESpec: "vae", TextSpec: "text"}


def sized(kind: type[Sizes], **values: Any) -> Sizes:
    """A part's sizes, of values that may be anything: each is looked at before any is computed
    with, as a text times a number is a long text.

    Raises `ValueError` naming the first value that is of a wrong type or out of range, or what does
    not go together; `TypeError` for an unknown name.
    """
    _check(kind, values)
    return kind(**values)


def _check(kind: type[UNetSpec | VAESpec | TextSpec], values: Mapping[str, Any]) -> None:
    for field in dataclasses.fields(kind):
        default: Any = field.default
        value = values.get(field.name, default)
        expected = _expected(field.name, value, default)
        if expected is not None:
            raise ValueError(
                f"the {_COMPONENTS[kind]}'s {field.name} is {shown(value)}; expected {expected}"
            )


def widths(value: Any) -> list[int]:
    """The widths of a part's levels, from a configuration. Raises `ValueError`."""
    sound = isinstance(value, list) and 1 <= len(value) <= MAX_LEVELS
    if not sound or not all(_is_size(width, MAX_SIZE) for width in value):
        raise ValueError(f"its levels are {shown(value)}; expected 1 to {MAX_LEVELS} widths")
    return list(value)


def native_size(value: Any, unit: int = 1) -> int:
    """A model's own picture side in pixels. value: from a configuration, in units of so many.

    Raises `ValueError`.
    """
    if not _is_size(value, MAX_SIDE // unit):
        raise ValueError(f"its picture's side is {shown(value)}; expected 1 to {MAX_SIDE // unit}")
    return int(value) * unit


def check_sizes(spec: ModelSpec, source: str, tokenizer: TokenizerSpec | None = None) -> None:
    """Raises `CheckpointError` naming the first size that is of a wrong type or out of range.

    tokenizer: that the model brings; None for CLIP's own.
    """
    try:
        for part in (spec.unet, spec.vae, spec.text):
            _check(type(part), vars(part))
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None
    text = spec.text
    entries = CLIP_VOCABULARY if tokenizer is None else tokenizer.size
    if text.length != MAX_TOKENS or text.vocab_size < entries:
        whose = "CLIP's" if tokenizer is None else "its tokenizer's"
        raise CheckpointError(
            f"{source}: its text encoder takes {text.length} tokens of a vocabulary of "
            f"{text.vocab_size}; expected {whose} {MAX_TOKENS} tokens of {entries}"
        )
    if text.width % text.heads:
        raise CheckpointError(
            f"{source}: the text's width {text.width} does not divide into {text.heads} heads"
        )


def check_depth(checkpoint: Checkpoint) -> None:
    """Raises `CheckpointError` where many more layers would be built than a file's weights fill."""
    spec = checkpoint.spec
    stages = sum(len(p.channel_mult) * p.num_res_blocks for p in (spec.unet, spec.vae))
    layers = stages + spec.text.layers
    held = sum(len(part.stored) for part in checkpoint.parts.values())
    if layers > max(held, SHALLOW):
        raise CheckpointError(
            f"{checkpoint.path}: its sizes describe {layers} layers, its files hold {held} weights"
        )


def _expected(name: str, value: Any, default: Any) -> str | None:
    """Words for what a size should have been, None where it is valid. default: of the same type."""
    if isinstance(default, str):
        return None if value in ACTIVATIONS else f"one of {', '.join(ACTIVATIONS)}"
    if isinstance(default, float):
        sound = isinstance(value, int | float) and 0 < value < math.inf
        return None if sound else "a number above 0"
    limit = MAX_DEPTH if name in _DEPTHS else MAX_SIZE
    if name == "guidance_dim":
        sound = value == 0 or _is_size(value, limit)
        return None if type(value) is int and sound else f"a number within 0 to {limit}"
    if isinstance(default, int):
        return None if _is_size(value, limit) else f"a number within 1 to {limit}"
    if not isinstance(value, tuple) or len(value) > MAX_LEVELS:
        return f"at most {MAX_LEVELS} sound levels"
    flags = isinstance(default[0], bool)
    each = (isinstance(v, bool) if flags else _is_size(v, limit) for v in value)
    return None if all(each) else f"at most {MAX_LEVELS} sound levels"


def _is_size(value: Any, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= limit


def one_of(name: str, value: Any, allowed: Sequence[Value]) -> Value:
    """The value, if it is allowed. Raises `ValueError`."""
    for one in allowed:
        if type(value) is type(one) and value == one:
            return one
    raise ValueError(f"{name} is {value!r:.40}; expected one of {', '.join(map(str, allowed))}")
