"""A model's sizes, read off the shapes of its weights.

What shapes do not tell is as in Stable Diffusion v1: 8 heads and 32 groups in the UNet, 32 groups
and scale factor 0.18215 in the autoencoder, text heads of width 64.
"""

from __future__ import annotations

from collections.abc import Callable

from sd_core.spec import TextSpec, UNetSpec, VAESpec
from sd_core.weights.stored import Shape

TEXT_HEAD_WIDTH = 64

ShapeOf = Callable[[str], Shape | None]
"""The stored shape of one of our parameter names, None where the file has no such weight."""


class UnknownSizeError(Exception):
    """A weight that the sizes are read from is missing or of an odd shape; `args[0]` names it."""


def _size(shape_of: ShapeOf, name: str, axis: int) -> int:
    shape = shape_of(name)
    if shape is None or len(shape) <= axis or shape[axis] == 0:
        raise UnknownSizeError(name)
    return shape[axis]


def _multipliers(widths: list[int], base: int) -> tuple[int, ...]:
    if any(width % base for width in widths):
        raise UnknownSizeError(f"level widths {widths} that are no multiples of {base}")
    return tuple(width // base for width in widths)


def unet_sizes(shape_of: ShapeOf) -> UNetSpec:
    """Sizes of a UNet. Raises `UnknownSizeError`."""
    channels = _size(shape_of, "input_blocks.0.0.weight", 0)
    widths: list[int] = []
    attention: list[bool] = []
    blocks: list[int] = []
    number, new_level = 1, True
    while True:
        place = f"input_blocks.{number}"
        if shape_of(f"{place}.0.op.weight") is not None:
            new_level = True
        elif shape_of(f"{place}.0.in_layers.2.weight") is not None:
            if new_level:
                widths.append(_size(shape_of, f"{place}.0.in_layers.2.weight", 0))
                attention.append(shape_of(f"{place}.1.norm.weight") is not None)
                blocks.append(0)
                new_level = False
            blocks[-1] += 1
        else:
            break
        number += 1
    if not blocks or len(set(blocks)) != 1:
        raise UnknownSizeError(f"{place}.0.in_layers.2.weight")
    return UNetSpec(
        in_channels=_size(shape_of, "input_blocks.0.0.weight", 1),
        out_channels=_size(shape_of, "out.2.weight", 0),
        channels=channels,
        channel_mult=_multipliers(widths, channels),
        num_res_blocks=blocks[0],
        attention_levels=tuple(attention),
        context_dim=_size(shape_of, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1),
        guidance_dim=guidance_dim(shape_of),
    )


def guidance_dim(shape_of: ShapeOf) -> int:
    """Size of the embedding by which a UNet is told its guidance; 0 for one that is not."""
    shape = shape_of("time_embed.cond_proj.weight")
    return 0 if shape is None or len(shape) != 2 else shape[1]


def vae_sizes(shape_of: ShapeOf) -> VAESpec:
    """Sizes of an autoencoder. Raises `UnknownSizeError`."""
    channels = _size(shape_of, "encoder.conv_in.weight", 0)
    widths: list[int] = []
    while shape_of(first := f"encoder.down.{len(widths)}.block.0.conv1.weight") is not None:
        widths.append(_size(shape_of, first, 0))
    blocks = 0
    while shape_of(f"encoder.down.0.block.{blocks}.conv1.weight") is not None:
        blocks += 1
    if not blocks:
        raise UnknownSizeError("encoder.down.0.block.0.conv1.weight")
    return VAESpec(
        channels=channels,
        channel_mult=_multipliers(widths, channels),
        num_res_blocks=blocks,
        latent_channels=_size(shape_of, "decoder.conv_in.weight", 1),
    )


def text_sizes(shape_of: ShapeOf) -> TextSpec:
    """Sizes of a CLIP text transformer. Raises `UnknownSizeError`."""
    width = _size(shape_of, "transformer.embeddings.token_embedding.weight", 1)
    layers = 0
    while shape_of(f"transformer.encoder.layers.{layers}.mlp.fc1.weight") is not None:
        layers += 1
    return TextSpec(
        width=width,
        layers=layers,
        heads=max(1, width // TEXT_HEAD_WIDTH),
        mlp_width=_size(shape_of, "transformer.encoder.layers.0.mlp.fc1.weight", 0),
        vocab_size=_size(shape_of, "transformer.embeddings.token_embedding.weight", 0),
        length=_size(shape_of, "transformer.embeddings.position_embedding.weight", 0),
    )
