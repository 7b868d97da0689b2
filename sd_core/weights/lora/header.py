"""A first look at an adapter's file, without torch: what a manifest names is refused early."""

from __future__ import annotations

from sd_core.weights.errors import CheckpointError
from sd_core.weights.lora.kind import flaw_of
from sd_core.weights.lora.names import names_of_any
from sd_core.weights.safetensors_header import begins_as_safetensors, read_header, shape_in


def check_lora(data: bytes, where: str) -> None:
    """Raises `CheckpointError` for a file of safetensors that is no LoRA for Stable Diffusion v1.

    data: the file. where: its name, for messages. What fits no layer of the very model is left to
    `read_lora`, as are pickles, which cannot be looked into without torch.
    """
    if not begins_as_safetensors(data):
        return
    _, header, _ = read_header(data, where)
    flaw = flaw_of({name: shape_in(entry) for name, entry in header.items()}, names_of_any())
    if flaw is not None:
        raise CheckpointError(f"{where}: {flaw}")
