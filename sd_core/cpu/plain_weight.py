"""The weight of a UNet's layer as its file has it, also where it was laid out for a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sd_core.cpu.native_layers import OwnGEGLU, OwnLinear, PointwiseConv2d, WinogradConv2d
from sd_core.cpu.native_products import in_halves, plain_linear_weight, plain_winograd_weight
from sd_core.cpu.packing import PackedConv2d, PackedGEGLU, PackedLinear, PackedSelfAttention

_OF_SELF_ATTENTION = {"to_q": 0, "to_k": 1, "to_v": 2}


def plain_weight(part: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """Weight, (out, in) or (out, in, kh, kw), and bias, (out,), of the layer that has this name in
    a part that is not packed. A weight laid out for Winograd's algorithm comes back rounded.

    Raises `AttributeError` for a name of no layer.
    """
    parent, _, leaf = name.rpartition(".")
    above, _, place = parent.rpartition(".")
    if leaf in _OF_SELF_ATTENTION:
        attention = part.get_submodule(parent)
        if isinstance(attention, PackedSelfAttention):
            together, _ = _plain(attention.to_qkv)
            return together.chunk(3)[_OF_SELF_ATTENTION[leaf]], None
    if place == "to_out":
        attention = part.get_submodule(above)
        if isinstance(attention, PackedSelfAttention):
            return _plain(attention.to_out)
    if leaf == "proj":
        geglu = part.get_submodule(parent)
        if isinstance(geglu, PackedGEGLU):
            halves = _plain(geglu.value), _plain(geglu.gate)
            biases = [bias for _, bias in halves if bias is not None]
            return torch.cat([weight for weight, _ in halves]), torch.cat(biases)
        if isinstance(geglu, OwnGEGLU):
            weight = in_halves(plain_linear_weight(geglu.weight).t()).t()
            return weight, in_halves(geglu.bias)
    return _plain(part.get_submodule(name))


def _plain(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    if isinstance(layer, PackedConv2d | PackedLinear):
        weight = layer.weight.first
        return weight.to_dense() if weight.is_mkldnn else weight, layer.bias
    if isinstance(layer, OwnLinear):
        return plain_linear_weight(layer.weight), layer.bias
    if isinstance(layer, PointwiseConv2d):
        weight, bias = _plain(layer.linear)
        return weight[:, :, None, None], bias
    if isinstance(layer, WinogradConv2d):
        return plain_winograd_weight(layer.weight), layer.bias
    if isinstance(layer, nn.Linear | nn.Conv2d):
        return layer.weight, layer.bias
    raise AttributeError(f"{type(layer).__name__} has no weight for adapters")
