"""Adapters of the images in the engine: read by who submits, and put together to sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from sd_core.cpu.plain_weight import plain_weight
from sd_core.engine.request import Lora, check_file
from sd_core.model.adapters import Gain, LowRank, Share, gain_of
from sd_core.model.diffusion import LatentDiffusion
from sd_core.model.text import TextEncoder
from sd_core.model.unet import UNet
from sd_core.weights.lora.read import LowRankLayer, read_lora

Layers = Mapping[str, tuple[Share, ...]]
"""By the name of a layer, what an image adds to it."""

_CONTEXT = (".attn2.to_k", ".attn2.to_v")
_TIMES = ("time_embed.", ".emb_layers.")


@dataclass(frozen=True)
class LoadedLora:
    """An adapter on the device, by the names of the layers it is of."""

    unet: Mapping[str, LowRank]
    text: Mapping[str, LowRank]
    nbytes: int


@dataclass(frozen=True, eq=False)
class LoraSet:
    """The adapters of an image at their weights, on the device.

    number: that no other has. key: the same for the same files and weights. text: of the text
    encoder. context: of the keys and values of prompts. times: of what timesteps become. others: of
    the UNet's other layers.
    """

    number: int
    key: tuple[Lora, ...]
    text: Layers
    context: Layers
    times: Layers
    others: Layers


def set_of(number: int, loras: tuple[Lora, ...], loaded: Sequence[LoadedLora]) -> LoraSet:
    """The set of these adapters. loaded: their layers, in the same order."""
    text: dict[str, tuple[Share, ...]] = {}
    unet: dict[str, tuple[Share, ...]] = {}
    for lora, layers in zip(loras, loaded, strict=True):
        _add(text, layers.text, lora.text_weight)
        _add(unet, layers.unet, lora.weight)
    context = {name: unet.pop(name) for name in list(unet) if name.endswith(_CONTEXT)}
    times = {name: unet.pop(name) for name in list(unet) if any(t in name for t in _TIMES)}
    return LoraSet(number, loras, text, context, times, unet)


def read_adapter(lora: Lora, model: LatentDiffusion) -> LoadedLora:
    """The layers of a file, as the model's layers take them. Raises `CheckpointError`."""
    check_file(lora)
    file = read_lora(lora.file, model.spec)
    unet = dict(_layers(model, model.unet, file.unet))
    text = dict(_layers(model, model.text, file.text))
    if model.device.type == "cuda":
        torch.cuda.current_stream(model.device).synchronize()
    tensors = [t for part in (unet, text) for one in part.values() for t in _tensors(one)]
    return LoadedLora(unet, text, sum(tensor.nbytes for tensor in tensors))


def _layers(
    model: LatentDiffusion, part: UNet | TextEncoder, layers: Mapping[str, LowRankLayer]
) -> Iterator[tuple[str, LowRank]]:
    device, dtype = model.device, model.dtype
    for name, layer in layers.items():
        down, up, scale, gain = layer.down, layer.up, layer.scale, None
        if layer.magnitude is not None:
            weight, bias = plain_weight(part, name)
            own = (t.to(weight.device) for t in (down, up.float() * scale, layer.magnitude))
            gain, up = gain_of(weight, bias, *own)
            gain, scale = Gain(*(t.to(device, dtype) for t in gain)), 1.0
        low_rank = LowRank(down.to(device, dtype), up.to(device, dtype), scale, gain)
        yield name, part.adapters[name].lay_out(low_rank)


def _tensors(layer: LowRank) -> Iterator[torch.Tensor]:
    yield from (layer.down, layer.up, *(layer.gain or ()))


def _add(
    shares: dict[str, tuple[Share, ...]], layers: Mapping[str, LowRank], weight: float
) -> None:
    if weight:
        for name, layer in layers.items():
            shares[name] = (*shares.get(name, ()), Share(layer, weight))
