"""Layers that can have an adapter, and their names in files: those of CompVis, of diffusers, and of
kohya's scripts, which write underscores for dots.

No torch: a manifest's adapters are looked at on machines that have none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import lru_cache

from sd_core.spec import ModelSpec, TextSpec, UNetSpec
from sd_core.weights.key_map import clip_names, diffusers_unet_name

Shape = tuple[int, ...]
Layer = tuple[str, str]
"""Component, unet or text, and our name of a layer."""


@lru_cache(maxsize=8)
def layers_of(spec: ModelSpec) -> tuple[dict[str, Layer], dict[Layer, Shape]]:
    """Every name that a file may have for a layer, and the shapes of the layers'
    weights: (out, in) or (out, in, kh, kw).
    """
    names: dict[str, Layer] = {}
    shapes: dict[Layer, Shape] = {}
    for name, shape in _unet_layers(spec.unet):
        layer = "unet", name
        theirs = diffusers_unet_name(f"{name}.weight", spec.unet.num_res_blocks)
        shapes[layer] = shape
        for prefix in ("unet", "lora_unet"):
            _enter(names, prefix, (name, theirs.removesuffix(".weight")), layer)
    for name, shape in _text_layers(spec.text):
        layer = "text", name
        shapes[layer] = shape
        for prefix in ("text_encoder", "lora_te"):
            _enter(names, prefix, clip_names(name), layer)
    return names, shapes


@lru_cache(maxsize=1)
def names_of_any() -> frozenset[str]:
    """Names of layers in files for a model of this architecture, of whatever depth."""
    names: set[str] = set()
    for depth, attends in itertools.product((1, 2, 3), (True, False)):
        levels = UNetSpec.attention_levels
        unet = UNetSpec(num_res_blocks=depth, attention_levels=(attends,) * len(levels))
        names.update(layers_of(ModelSpec(unet=unet))[0])
    return frozenset(names)


def _unet_layers(spec: UNetSpec) -> Iterator[tuple[str, Shape]]:
    """Linear layers and convolutions of a `UNet`, in its order."""
    base, embedded = spec.channels, 4 * spec.channels
    yield "time_embed.0", (embedded, base)
    yield "time_embed.2", (embedded, embedded)
    if spec.guidance_dim:
        yield "time_embed.cond_proj", (base, spec.guidance_dim)
    width, number = base, 0
    yield "input_blocks.0.0", (base, spec.in_channels, 3, 3)
    skips = [width]
    for level, mult in enumerate(spec.channel_mult):
        for _ in range(spec.num_res_blocks):
            number += 1
            yield from _res_block(f"input_blocks.{number}.0", width, base * mult, embedded)
            width = base * mult
            if spec.attention_levels[level]:
                yield from _transformer(f"input_blocks.{number}.1", width, spec.context_dim)
            skips.append(width)
        if level + 1 < len(spec.channel_mult):
            number += 1
            yield f"input_blocks.{number}.0.op", (width, width, 3, 3)
            skips.append(width)
    yield from _res_block("middle_block.0", width, width, embedded)
    yield from _transformer("middle_block.1", width, spec.context_dim)
    yield from _res_block("middle_block.2", width, width, embedded)
    number = -1
    for level, mult in reversed(list(enumerate(spec.channel_mult))):
        for index in range(spec.num_res_blocks + 1):
            number += 1
            place = f"output_blocks.{number}"
            yield from _res_block(f"{place}.0", width + skips.pop(), base * mult, embedded)
            width = base * mult
            attends = spec.attention_levels[level]
            if attends:
                yield from _transformer(f"{place}.1", width, spec.context_dim)
            if level and index == spec.num_res_blocks:
                yield f"{place}.{1 + attends}.conv", (width, width, 3, 3)
    yield "out.2", (spec.out_channels, width, 3, 3)


def _res_block(place: str, width: int, out: int, embedded: int) -> Iterator[tuple[str, Shape]]:
    yield f"{place}.in_layers.2", (out, width, 3, 3)
    yield f"{place}.emb_layers.1", (out, embedded)
    yield f"{place}.out_layers.3", (out, out, 3, 3)
    if out != width:
        yield f"{place}.skip_connection", (out, width, 1, 1)


def _transformer(place: str, width: int, context: int) -> Iterator[tuple[str, Shape]]:
    block = f"{place}.transformer_blocks.0"
    yield f"{place}.proj_in", (width, width, 1, 1)
    for attention, read in (("attn1", width), ("attn2", context)):
        yield f"{block}.{attention}.to_q", (width, width)
        yield f"{block}.{attention}.to_k", (width, read)
        yield f"{block}.{attention}.to_v", (width, read)
        yield f"{block}.{attention}.to_out.0", (width, width)
    yield f"{block}.ff.net.0.proj", (8 * width, width)
    yield f"{block}.ff.net.2", (width, 4 * width)
    yield f"{place}.proj_out", (width, width, 1, 1)


def _text_layers(spec: TextSpec) -> Iterator[tuple[str, Shape]]:
    """Linear layers of a `TextEncoder`."""
    for number in range(spec.layers):
        place = f"transformer.encoder.layers.{number}"
        for name in ("q", "k", "v", "out"):
            yield f"{place}.self_attn.{name}_proj", (spec.width, spec.width)
        yield f"{place}.mlp.fc1", (spec.mlp_width, spec.width)
        yield f"{place}.mlp.fc2", (spec.width, spec.mlp_width)


def _enter(names: dict[str, Layer], prefix: str, known: Iterable[str], layer: Layer) -> None:
    for name in known:
        names[f"{prefix}.{name}"] = layer
        names[f"{prefix}.{name}".replace(".", "_")] = layer
