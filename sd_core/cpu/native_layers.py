"""Layers whose products are kernels of our own (`sd_core.cpu.native_products`), for inputs of any
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.cpu.native_adapters import WIDTH, added_to_convolution, lay_out, shares_of
from sd_core.cpu.native_products import (
    WINOGRAD_CHANNELS,
    geglu,
    in_turns,
    linear,
    linear_weight,
    winograd,
    winograd_weight,
)
from sd_core.model.adapters import Adapters, Gain, LowRank, adapters_of
from sd_core.model.layers import GEGLU


def copied(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.clone(), requires_grad=False)


class OwnLinear(nn.Module):
    """A linear layer, or several of one size together. weight: (out, in). adapters: of each."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, adapters: Sequence[Adapters] = ()
    ) -> None:
        super().__init__()
        self._columns = len(weight) // max(1, len(adapters))
        self.weight = nn.Parameter(linear_weight(weight), requires_grad=False)
        self.bias = None if bias is None else copied(bias)
        self.adapters = adapters
        for one in adapters:
            one.lay_out = lay_out

    @staticmethod
    def suits(out: int, into: int) -> bool:
        """True if such a layer can have a weight of this shape."""
        return out % WIDTH == 0 and into % 2 == 0

    def forward(self, x: Tensor) -> Tensor:
        return self.plus(x, None)

    def plus(self, x: Tensor, added: Tensor | None) -> Tensor:
        """The layer of x, and what is added to it, in the same kernel."""
        columns = self._columns
        parts = ((one.rows, n * columns, columns) for n, one in enumerate(self.adapters))
        shares = shares_of(parts, x.shape[1:-1].numel(), x.shape[-1])
        return linear(x, self.weight, self.bias, added, shares)


class OwnGEGLU(nn.Module):
    """Values and gates by one kernel, which rounds their products only."""

    def __init__(self, layer: GEGLU) -> None:
        super().__init__()
        weight = linear_weight(in_turns(layer.proj.weight))
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = copied(in_turns(layer.proj.bias))
        self.adapters = adapters_of(layer.proj)
        self.adapters.lay_out = _lay_out_in_turns

    @staticmethod
    def suits(layer: GEGLU) -> bool:
        """True if such a layer can take this one's place."""
        return OwnLinear.suits(layer.proj.out_features // 2, layer.proj.in_features)

    def forward(self, x: Tensor) -> Tensor:
        parts = [(self.adapters.rows, 0, len(self.bias))]
        shares = shares_of(parts, x.shape[1:-1].numel(), x.shape[-1])
        return geglu(x, self.weight, self.bias, shares)


def _lay_out_in_turns(low_rank: LowRank) -> LowRank:
    down, up, scale, gain = low_rank
    if gain is not None:
        gain = Gain(in_turns(gain.factor), in_turns(gain.shift))
    return lay_out(LowRank(down, in_turns(up), scale, gain))


class PointwiseConv2d(nn.Module):
    """A convolution of 1 x 1: a linear layer of pixels."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.linear = OwnLinear(conv.weight.flatten(1), conv.bias, [adapters_of(conv)])

    @staticmethod
    def suits(conv: nn.Conv2d) -> bool:
        """True if such a layer can take the convolution's place."""
        geometry = conv.kernel_size, conv.stride, conv.padding, conv.groups
        return geometry == ((1, 1), (1, 1), (0, 0), 1) and OwnLinear.suits(*conv.weight.shape[:2])

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def plus(self, x: Tensor, added: Tensor) -> Tensor:
        """The convolution of x, and what is added to it, in the same kernel."""
        sums = self.linear.plus(x.permute(0, 2, 3, 1), added.permute(0, 2, 3, 1))
        return sums.permute(0, 3, 1, 2)


class WinogradConv2d(nn.Module):
    """A convolution of 3 x 3 by Winograd's algorithm."""

    LEAST_SIDE = 16
    """Least side of a feature map, at v1's size. Smaller maps take a twelfth of the products of
    such convolutions, but half of their weights, for which the algorithm takes 7/9 more memory.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(winograd_weight(conv.weight), requires_grad=False)
        self.bias = copied(cast(nn.Parameter, conv.bias))
        self.adapters = adapters_of(conv)
        self.adapters.lay_out = lay_out

    @classmethod
    def suits(cls, conv: nn.Conv2d, side: int) -> bool:
        """True if such a layer can take the convolution's place and is worth it for maps of this
        side.
        """
        geometry = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
        return (
            geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
            and conv.bias is not None
            and conv.in_channels % WINOGRAD_CHANNELS == 0
            and conv.out_channels % WIDTH == 0
            and side >= cls.LEAST_SIDE
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._adapted(self._product(x), x)

    def plus(self, x: Tensor, added: Tensor) -> Tensor:
        """The convolution of x, and what is added to it, in the same kernel."""
        return self._adapted(winograd(x, self.weight, self.bias, added), x)

    def of_enlarged(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The convolution of x enlarged to (height, width) by nearest neighbours."""
        if size != (2 * x.shape[2], 2 * x.shape[3]):
            return self(F.interpolate(x, size=size, mode="nearest"))
        out = winograd(x, self.weight, self.bias, doubled=True)
        if self.adapters.rows:
            self._adapted(out, F.interpolate(x, size=size, mode="nearest"))
        return out

    def _adapted(self, out: Tensor, x: Tensor) -> Tensor:
        return added_to_convolution(self.adapters, out, x, self._product, kernel=3)

    def _product(self, x: Tensor) -> Tensor:
        return winograd(x, self.weight, self.bias)
