"""Tells by names and shapes that a file is no autoencoder for v1. No torch, as in `lora.header`."""

from __future__ import annotations

from sd_core.weights.errors import CheckpointError
from sd_core.weights.identify import foreign_vae
from sd_core.weights.safetensors_header import begins_as_safetensors, read_header, shape_in

LATENT_CHANNELS = 4

_FIRST_LAYER = "decoder.conv_in.weight"


def check_vae(data: bytes, where: str) -> None:
    """Raises `CheckpointError` for a file of safetensors without an autoencoder of 4 latent
    channels. data: the file. where: its name, for messages.

    The autoencoder of SDXL has the very shapes of v1's, so nothing tells it.
    """
    if not begins_as_safetensors(data):
        return
    _, header, _ = read_header(data, where)
    shapes = {name: shape_in(entry) for name, entry in header.items()}
    seems = foreign_vae(shapes)
    if seems is not None:
        raise CheckpointError(f"{where}: it seems to be {seems}; expected an autoencoder (VAE)")
    for name, shape in shapes.items():
        if name.endswith(_FIRST_LAYER) and shape[1:2] != (LATENT_CHANNELS,):
            channels = shape[1] if len(shape) > 1 else "other"
            raise CheckpointError(
                f"{where}: it is an autoencoder for latents of {channels} channels, as those of "
                f"Stable Diffusion 3 and Flux; Stable Diffusion v1 has {LATENT_CHANNELS}"
            )
