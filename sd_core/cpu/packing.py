"""Weights in the layout of a CPU's kernels, made once instead of at every call.

The convolutions of the UNet and of the autoencoder change places with layers that hold their
weights as oneDNN wants them, and give the same bits. Linear layers can do so too; on the way the
three projections of a self-attention become one product, and the GELU and the product of a GEGLU
become part of its two products, which gives the same numbers within rounding. So do layers whose
products are kernels of our own (`sd_core.cpu.native_layers`), where they suit.

What is packed has no state dict any more, so pack last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.cpu import kernels, mkldnn
from sd_core.cpu.adapted import adapted_geglu
from sd_core.cpu.fused_blocks import FusedCrossAttention, fuse, plus
from sd_core.cpu.mkldnn import Geometry, Size
from sd_core.cpu.native_adapters import added_to_convolution, can_add_to, lay_out
from sd_core.cpu.native_layers import OwnGEGLU, OwnLinear, PointwiseConv2d, WinogradConv2d, copied
from sd_core.cpu.packed_weight import ConvReorder, LinearReorder, PackedWeight
from sd_core.model.adapters import Adapters, adapters_of
from sd_core.model.layers import (
    GEGLU,
    CrossAttention,
    TransformerBlock,
    Upsample,
    split_heads,
)
from sd_core.model.unet import UNet
from sd_core.model.vae import AutoencoderKL
from sd_core.spec import LATENT_FACTOR, ModelSpec


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """True where oneDNN has kernels for this type, and torch lets them be used."""
    return device.type == "cpu" and mkldnn.works(dtype)


class PackedConv2d(nn.Module):
    """A convolution, its weight laid out for inputs of this size (B, C, H, W) at first.

    scratch: memory for a copy of the weight, of its type and at least as many elements.
    own: adapters are added by a kernel of our own where it suits.
    """

    def __init__(self, conv: nn.Conv2d, size: Size, scratch: Tensor, own: bool = False) -> None:
        super().__init__()
        self.bias = None if conv.bias is None else copied(conv.bias)
        self._geometry = Geometry(cast(Size, conv.padding), conv.stride, conv.dilation, conv.groups)
        # New memory for each copy would cost more than the copy.
        out, into, height, width = conv.weight.shape
        weight = scratch[: conv.weight.numel()].view(out, height, width, into).permute(0, 3, 1, 2)
        self.weight = PackedWeight(weight.copy_(conv.weight), ConvReorder(self._geometry), size)
        self.adapters = adapters_of(conv)
        self._own_kernel = height if own and can_add_to(conv) else None
        if self._own_kernel is not None:
            self.adapters.lay_out = lay_out

    def forward(self, x: Tensor) -> Tensor:
        out = self._product(x)
        if self._own_kernel is None:
            return self.adapters.added(out, x, self._product)
        return added_to_convolution(self.adapters, out, x, self._product, self._own_kernel)

    def _product(self, x: Tensor) -> Tensor:
        weight = self.weight.laid_out(tuple(x.shape))
        if weight.is_mkldnn:
            return mkldnn.convolution(x, weight, self.bias, self._geometry)
        padding, stride, dilation, groups = self._geometry
        return F.conv2d(x, weight, self.bias, stride, padding, dilation, groups)


class PackedLinear(nn.Module):
    """A linear layer. weight: (out, in); tokens: how many it will be given at first. What is added
    is so in a pass of its own: by oneDNN in the product's kernel it took longer on a Zen 4, and as
    long on a CPU with AMX.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, tokens: int, adapters: Adapters | None = None
    ) -> None:
        super().__init__()
        self.bias = None if bias is None else copied(bias)
        self.weight = PackedWeight(weight, LinearReorder(), (tokens,))
        self.adapters = adapters or Adapters()

    def forward(self, x: Tensor) -> Tensor:
        return self.adapters.added(self._product(x), x, self._product)

    def _product(self, x: Tensor) -> Tensor:
        weight = self._laid_out(x)
        if weight.is_mkldnn:
            return mkldnn.linear(x, weight, self.bias)
        return F.linear(x, weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """GELU of the layer, in the same kernel."""
        weight = self._laid_out(x)
        if weight.is_mkldnn:
            return mkldnn.linear(x, weight, self.bias, gelu=True)
        return F.gelu(F.linear(x, weight, self.bias))

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """The layer times a factor of its shape, in the same kernel."""
        weight = self._laid_out(x)
        if weight.is_mkldnn:
            return mkldnn.linear_times(x, weight, self.bias, factor)
        return F.linear(x, weight, self.bias) * factor

    def _laid_out(self, x: Tensor) -> Tensor:
        return self.weight.laid_out((x.shape[:-1].numel(),))


class PackedGEGLU(nn.Module):
    def __init__(self, geglu: GEGLU, tokens: int) -> None:
        super().__init__()
        (value, gate), (value_bias, gate_bias) = (t.chunk(2) for t in geglu.proj.parameters())
        self.value = PackedLinear(value, value_bias, tokens)
        self.gate = PackedLinear(gate, gate_bias, tokens)
        self.adapters = adapters_of(geglu.proj)

    def forward(self, x: Tensor) -> Tensor:
        return adapted_geglu(self.adapters, x, self._product, self._gated)

    def _product(self, x: Tensor) -> Tensor:
        return self.value.times(x, self.gate.gelu(x))

    def _gated(self, x: Tensor) -> Tensor:
        return torch.cat([self.value(x), self.gate(x)], dim=-1)


class PackedSelfAttention(nn.Module):
    """Queries, keys and values in one product; of tokens to themselves only."""

    def __init__(self, attention: CrossAttention, tokens: int, own: bool) -> None:
        super().__init__()
        self.heads = attention.heads
        self.of_itself = attention.of_itself
        fused = isinstance(attention, FusedCrossAttention)
        self.attend = kernels.attention if fused else F.scaled_dot_product_attention
        together = torch.cat([p.weight for p in (attention.to_q, attention.to_k, attention.to_v)])
        out = cast(nn.Linear, attention.to_out[0])
        adapters = [adapters_of(p) for p in (attention.to_q, attention.to_k, attention.to_v)]
        self.to_qkv = _linear_of(together, None, tokens, own, adapters)
        self.to_out = _linear(out, tokens, own)
        # A layer of our own has them in its product.
        self._adapters = adapters if isinstance(self.to_qkv, PackedLinear) else []

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(self._attended(x))

    def plus(self, x: Tensor, added: Tensor) -> Tensor:
        """The attention of x, and what is added to it."""
        return plus(self.to_out, self._attended(x), added)

    def _part(self, number: int, x: Tensor) -> Tensor:
        """Queries, keys or values of x."""
        return self.to_qkv(x).chunk(3, dim=-1)[number]

    def _attended(self, x: Tensor) -> Tensor:
        parts = self.to_qkv(x).chunk(3, dim=-1)
        for number, adapters in enumerate(self._adapters):
            adapters.added(parts[number], x, partial(self._part, number))
        q, k, v = (split_heads(part, self.heads) for part in parts)
        out = self.of_itself.changed(self.attend(q, k, v), v)
        return out.transpose(1, 2).flatten(2)


def pack(
    part: UNet | AutoencoderKL,
    rows: int,
    side: int,
    *,
    linears: bool,
    fused: bool = False,
    own: bool = False,
    load_layer_weights: Callable[[str], None] = lambda name: None,
) -> None:
    """Packs a part's layers in place, one after the other, so that memory holds no second copy of
    the weights.

    rows, side: of what is laid out for, the side in pixels of what goes into the part.
    linears: the linear layers too.
    fused: blocks with kernels of our own for norms and attention (`sd_core.cpu.fused_blocks`).
    own: products are kernels of our own where they suit.
    load_layer_weights: called with each layer's name before it is packed, to put weights there that
    are elsewhere yet; they are not used after the next call.
    """
    if fused:
        fuse(part)
    sizes = input_sizes(part, rows, side)
    # What Winograd's algorithm is for changes bits, which `native_size`, being advice, may not.
    native = ModelSpec().native_size
    of_v1 = input_sizes(part, 1, native // LATENT_FACTOR if isinstance(part, UNet) else native)
    # By name: a list of the layers would keep them all alive until the last is packed.
    convs = {n: m.weight.numel() for n, m in part.named_modules() if isinstance(m, nn.Conv2d)}
    scratch = torch.empty(max(convs.values()), dtype=next(part.parameters()).dtype)
    halved = False
    for name in convs:
        load_layer_weights(name)
        conv = cast(nn.Conv2d, part.get_submodule(name))
        # What Winograd's algorithm adds to the rounding counts most before the first halving, for
        # that goes on to all that follows: more than a third of it at v1 size, for a thirteenth of
        # such convolutions' products.
        halved = halved or conv.stride != (1, 1)
        if own and halved and WinogradConv2d.suits(conv, of_v1[name][2]):
            replace(part, name, WinogradConv2d(conv))
        elif own and PointwiseConv2d.suits(conv):
            replace(part, name, PointwiseConv2d(conv))
        else:
            replace(part, name, PackedConv2d(conv, sizes[name], scratch, own))
    if not linears:
        return
    blocks = [(n, m) for n, m in part.named_modules() if isinstance(m, TransformerBlock)]
    for place, block in blocks:  # they stay, only what is in them changes places
        for name, packed in _LINEARS.items():
            load_layer_weights(f"{place}.{name}")
            replace(block, name, packed(block.get_submodule(name), prod(sizes[place][:2]), own))


def _linear_of(
    weight: Tensor, bias: Tensor | None, tokens: int, own: bool, adapters: Sequence[Adapters]
) -> PackedLinear | OwnLinear:
    """adapters: of the layers that the weight is of."""
    if own and OwnLinear.suits(*weight.shape):
        return OwnLinear(weight, bias, adapters)
    return PackedLinear(weight, bias, tokens, adapters[0] if len(adapters) == 1 else None)


def _linear(linear: nn.Linear, tokens: int, own: bool) -> nn.Module:
    return _linear_of(linear.weight, linear.bias, tokens, own, [adapters_of(linear)])


def _geglu(geglu: GEGLU, tokens: int, own: bool) -> nn.Module:
    return OwnGEGLU(geglu) if own and OwnGEGLU.suits(geglu) else PackedGEGLU(geglu, tokens)


_LINEARS: Mapping[str, Callable[..., nn.Module]] = {
    "attn1": PackedSelfAttention,
    "attn2.to_q": _linear,
    "attn2.to_out.0": _linear,
    "ff.net.0": _geglu,
    "ff.net.2": _linear,
}
"""Packed layers for the parts of a transformer block. Keys and values of the prompt are made once
for an image, by layers that stay.
"""


def input_sizes(part: UNet | AutoencoderKL, rows: int, side: int) -> dict[str, Size]:
    """The sizes of the inputs of a part's layers, by name: (B, C, H, W) of convolutions, (B, T, C)
    of transformer blocks. They follow from the layers; running the part would take far longer.

    rows, side: of what goes into the part.
    """
    sizes: dict[str, Size] = {}
    before: list[int] = []  # sides that were halved, for the way back up
    for name, layer in part.in_order():
        if isinstance(layer, Upsample):
            side = before.pop()
        elif isinstance(layer, TransformerBlock):
            sizes[name] = rows, side * side, layer.norm1.normalized_shape[0]
        elif isinstance(layer, nn.Conv2d):
            kernel, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding[0]
            if stride > 1:
                before.append(side)
                side += int(padding == 0)  # the autoencoder pads on two sides only
            sizes[name] = rows, layer.in_channels, side, side
            side = (side + 2 * int(padding) - kernel) // stride + 1
    return sizes


def packed_weights(module: nn.Module) -> dict[str, PackedWeight]:
    """By the names of their layers. They are no parameters."""
    return {
        name: layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, PackedConv2d | PackedLinear)
    }


def packed_bytes(module: nn.Module) -> int:
    """Bytes of the packed weights."""
    return sum(weight.nbytes for weight in packed_weights(module).values())


def replace(module: nn.Module, name: str, by: nn.Module | nn.Parameter) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, by)
