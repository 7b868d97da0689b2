"""Tells by names and shapes what an embedding's file is for. No torch, as in `lora.header`."""

from __future__ import annotations

from collections.abc import Mapping

from sd_core.vocab.bpe import PROMPT_TOKENS
from sd_core.weights.errors import CheckpointError, named
from sd_core.weights.safetensors_header import begins_as_safetensors, read_header, shape_in

_OF_WIDTH = {1024: "Stable Diffusion 2", 1280: "SDXL"}
_OF_WEBUI = ("string_to_param.*", "emb_params")
_OF_SDXL = ("clip_g", "clip_l")


def check_embedding(data: bytes, where: str) -> None:
    """Raises `CheckpointError` for a file of safetensors that is no embedding for Stable Diffusion
    v1. data: the file. where: its name, for messages.
    """
    if begins_as_safetensors(data):
        _, header, _ = read_header(data, where)
        vectors_in({name: shape_in(entry) for name, entry in header.items()}, where)


def vectors_in(shapes: Mapping[str, tuple[int, ...]], where: str) -> str:
    """The name of the tensor that holds the vectors: one that the web UI calls so, or the only one.

    Raises `CheckpointError` where there is none, or it is for another kind of model.
    """
    if all(name in shapes for name in _OF_SDXL):
        raise CheckpointError(f"{where}: it is an embedding for SDXL; expected Stable Diffusion v1")
    name = next((name for name in _OF_WEBUI if name in shapes), None)
    if name is None and len(shapes) == 1:
        name = next(iter(shapes))
    if name is None:
        listed = ", ".join(named(key) for key in list(shapes)[:3])
        raise CheckpointError(f"{where}: it seems to be no embedding: it holds {listed}")
    shape = shapes[name]
    if len(shape) not in (1, 2):
        raise CheckpointError(f"{where}: {named(name)} is {shape}; expected vectors")
    of = _OF_WIDTH.get(shape[-1])
    if of is not None:
        raise CheckpointError(
            f"{where}: it is an embedding for {of}; expected one for Stable Diffusion v1"
        )
    count = shape[0] if len(shape) == 2 else 1
    if not 1 <= count <= PROMPT_TOKENS:
        raise CheckpointError(f"{where}: it has {count:,} vectors; expected 1 to {PROMPT_TOKENS}")
    return name
