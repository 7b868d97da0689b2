"""Layers of our own with adapters: what the layer is whose weight has them in it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sd_core.cpu.native_layers import OwnGEGLU, OwnLinear, PointwiseConv2d, WinogradConv2d
from sd_core.model.adapters import (
    Adapters,
    Conv2d,
    Gain,
    Linear,
    LowRank,
    RowShares,
    Share,
    adapters_of,
)
from sd_core.model.layers import GEGLU
from tests.sd_core.cpu.kernel_checks import Drawn, merged, needs_kernels

pytestmark = needs_kernels

ADAPTED = slice(1, 3)


def give(adapters: Adapters, one: LowRank) -> None:
    """Has rows of the next batches this adapter at half its strength."""
    own = (Share(adapters.lay_out(one), 0.5),)
    adapters.rows = tuple(RowShares(slice(row, row + 1), own) for row in range(1, 3))


def changed(weight: Tensor, one: LowRank) -> Tensor:
    return merged(weight, (Share(one, 0.5),)).bfloat16()


def dora_of(drawn: Drawn, layer: nn.Linear | nn.Conv2d, rank: int = 20) -> LowRank:
    """Of whole numbers, with another factor for each number that comes out."""
    out, into, *kernel = layer.weight.shape
    factor = drawn.whole(2, out)
    gain = Gain(factor, -factor * layer.bias if layer.bias is not None else 0 * factor)
    down = drawn.whole(1, rank, into) if kernel == [1, 1] else drawn.whole(1, rank, into, *kernel)
    return LowRank(down, drawn.whole(1, out, rank), 2.0, gain)


def whole(drawn: Drawn, layer: nn.Linear | nn.Conv2d) -> None:
    """Sets the layer's numbers to small whole ones, in which sums are exact."""
    layer.weight.data = 2 * drawn.whole(1, *layer.weight.shape)
    if layer.bias is not None:
        layer.bias.data = drawn.whole(3, len(layer.bias))


def only_adapted(found: Tensor, with_it: Tensor, without: Tensor) -> bool:
    """True for rows of `ADAPTED` of the one and all others of the other, and these two differ."""
    wanted = without.clone()
    wanted[ADAPTED] = with_it[ADAPTED]
    assert not torch.equal(with_it[ADAPTED], without[ADAPTED])
    return torch.equal(found, wanted)


@torch.no_grad()
def test_linear_layers_of_one_product_have_each_its_own():
    drawn = Drawn()
    layers = [Linear(64, 128, bias=False).bfloat16() for _ in range(3)]
    for layer in layers:
        whole(drawn, layer)
    own = OwnLinear(
        torch.cat([layer.weight for layer in layers]), None, [adapters_of(one) for one in layers]
    )
    x, added = drawn.whole(1, 4, 30, 64), drawn.whole(9, 4, 30, 384)
    without = own.plus(x, added)
    adapters = [dora_of(drawn, layer) for layer in layers]
    parts = [
        layer.weight if number == 1 else changed(layer.weight, one)
        for number, (layer, one) in enumerate(zip(layers, adapters, strict=True))
    ]
    for number in (0, 2):
        give(layers[number].adapters, adapters[number])
    with_it = (x.double() @ torch.cat(parts).double().t() + added.double()).bfloat16()
    assert only_adapted(own.plus(x, added), with_it, without)


@torch.no_grad()
def test_a_geglu_has_values_and_gates_of_its_adapter():
    drawn = Drawn()
    layer = GEGLU(64, 128).bfloat16()
    whole(drawn, layer.proj)
    own = OwnGEGLU(layer)
    x = drawn.whole(1, 4, 30, 64)
    without = own(x)
    one = dora_of(drawn, layer.proj)
    layer.proj.weight.data = changed(layer.proj.weight, one)
    with_it = OwnGEGLU(layer)(x)
    give(own.adapters, one)
    assert only_adapted(own(x), with_it, without)


@torch.no_grad()
@pytest.mark.parametrize("added", [False, True])
def test_a_pointwise_convolution_with_an_adapter(added):
    drawn = Drawn()
    layer = Conv2d(64, 128, 1).bfloat16()
    whole(drawn, layer)
    own = PointwiseConv2d(layer)
    x, more = drawn.whole(1, 4, 64, 6, 5), drawn.whole(9, 4, 128, 6, 5)

    def run(conv: PointwiseConv2d) -> Tensor:
        return conv.plus(x, more) if added else conv(x)

    without = run(own)
    one = dora_of(drawn, layer)
    layer.weight.data = changed(layer.weight, one)
    with_it = run(PointwiseConv2d(layer))
    give(own.linear.adapters[0], one)
    assert only_adapted(run(own), with_it, without)


@torch.no_grad()
@pytest.mark.parametrize("way", ["alone", "added", "enlarged", "enlarged to an odd size"])
def test_a_convolution_by_winograd_with_an_adapter(way):
    """Its products are not exact, so its adapter's is compared: that of a weight of zeros."""
    drawn = Drawn()
    layer = Conv2d(64, 64, 3, padding=1).bfloat16()
    whole(drawn, layer)
    layer.weight.data.zero_()
    own = WinogradConv2d(layer)
    x, more = drawn.whole(1, 4, 64, 8, 8), drawn.whole(9, 4, 64, 8, 8)

    def run(conv: WinogradConv2d | Conv2d, x: Tensor, more: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if way.startswith("enlarged"):
            size = (16, 16) if way == "enlarged" else (15, 13)
            if isinstance(conv, WinogradConv2d):
                return conv.of_enlarged(x, size)
            return conv(nn.functional.interpolate(x, size=size, mode="nearest"))
        if isinstance(conv, WinogradConv2d):
            return conv.plus(x, more) if way == "added" else conv(x)
        return conv(x) + (more if way == "added" else 0)

    without = run(own, x, more)
    one = dora_of(drawn, layer)._replace(gain=None)
    give(own.adapters, one)
    found = run(own, x, more)
    exact = layer.double()
    exact.adapters = Adapters()
    exact.weight.data = changed(layer.weight, one).double()
    assert only_adapted(found, run(exact, x.double(), more.double()).bfloat16(), without)
