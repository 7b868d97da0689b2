"""Names of layers in adapter files: those of CompVis, of diffusers, and of kohya's scripts, which
write underscores for dots.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch

from sd_core.model.text import weight_shapes
from sd_core.model.unet import UNet
from sd_core.spec import ModelSpec
from sd_core.weights.key_map import clip_names, diffusers_unet_name

Shape = tuple[int, ...]
Layer = tuple[str, str]
"""Component, unet or text, and our name of a layer."""


@lru_cache(maxsize=8)
def layers_of(spec: ModelSpec) -> tuple[dict[str, Layer], dict[Layer, Shape]]:
    """Every name that a file may have for a layer, and the shapes of the layers'
    weights: (out, in) or (out, in, kh, kw).
    """
    with torch.device("meta"):
        unet = UNet(spec.unet)
    weights = {name: tuple(weight.shape) for name, weight in unet.named_parameters()}
    names: dict[str, Layer] = {}
    shapes: dict[Layer, Shape] = {}
    for name in unet.adapters:
        layer = "unet", name
        theirs = diffusers_unet_name(f"{name}.weight", spec.unet.num_res_blocks)
        shapes[layer] = weights[f"{name}.weight"]
        for prefix in ("unet", "lora_unet"):
            _enter(names, prefix, (name, theirs.removesuffix(".weight")), layer)
    for parameter, shape in weight_shapes(spec.text).items():
        name, _, leaf = parameter.rpartition(".")
        if leaf != "weight" or len(shape) != 2 or ".embeddings." in name:
            continue
        layer = "text", name
        shapes[layer] = shape
        for prefix in ("text_encoder", "lora_te"):
            _enter(names, prefix, clip_names(name), layer)
    return names, shapes


def _enter(names: dict[str, Layer], prefix: str, known: Iterable[str], layer: Layer) -> None:
    for name in known:
        names[f"{prefix}.{name}"] = layer
        names[f"{prefix}.{name}".replace(".", "_")] = layer
