"""Low-rank adapters of layers (LoRA), added to the rows of the images that have them.

    y += weight · scale · up(down(x))                                    (Hu et al. 2021, eq. 3)
    y += weight · ((gain - 1) · W x + gain · scale · up(down(x)))        (DoRA, Liu et al. 2024)

The second makes W what the first would, and each of its rows as long as the adapter says. Both give
the layer itself at weight 0. Weights of the model never change, and every row has products of its
own: its bits depend on no other, and rows without adapters are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.model.beside import Change, change

Product = Callable[[Tensor], Tensor]
"""A layer without its adapters."""


class Gain(NamedTuple):
    """DoRA's part of the layer itself: factor · W x, which is factor · layer(x) + shift, both
    (out,).
    """

    factor: Tensor
    shift: Tensor


class LowRank(NamedTuple):
    """An adapter of one layer.

    down: (r, in), of a convolution with larger kernels (r, in, kh, kw). up: (out, r), times the
    gain where there is one. scale: what the file says, alpha over rank.
    """

    down: Tensor
    up: Tensor
    scale: float
    gain: Gain | None = None


class Share(NamedTuple):
    """An adapter at the weight that an image gives it."""

    low_rank: LowRank
    weight: float


class RowShares(NamedTuple):
    """Adapters of a range of the batch's rows, added in this order."""

    rows: slice
    shares: tuple[Share, ...]


def _as_it_is(low_rank: LowRank) -> LowRank:
    return low_rank


class Adapters:
    """Adapters of one layer at the next evaluations; mostly none. A layer that takes the place of
    another takes over its `Adapters`.

    place: where compiled programs look for them (`sd_core.model.beside`); None, as mostly, where
    they are in `rows`.
    lay_out: makes of a file's adapter what the layer takes.
    """

    def __init__(self) -> None:
        self.rows: tuple[RowShares, ...] = ()
        self.place: str | None = None
        self.lay_out: Callable[[LowRank], LowRank] = _as_it_is

    def added(self, out: Tensor, x: Tensor, product: Product) -> Tensor:
        """`out`, the layer of x or that plus a sum, with the adapters' products added in place."""
        if self.place is not None:
            change(out, x, self.place)
            return out
        return self.added_to(self.rows, out, x, product)

    def added_to(
        self, all_rows: Sequence[RowShares], out: Tensor, x: Tensor, product: Product
    ) -> Tensor:
        """`added`, of these rows."""
        for rows, shares in all_rows:
            self.add(out[rows], x[rows], shares, product)
        return out

    def add(self, y: Tensor, x: Tensor, shares: Sequence[Share], product: Product) -> None:
        """Adds these shares to `y`, the layer of x, in place."""
        for (down, up, scale, gain), weight in shares:
            if gain is not None:
                self.add_gain(y, x, gain, weight, product)
            tokens = self._tokens(y).view(-1, len(up))  # a view, so it is added to `y`
            low = self._low(x, down)
            tokens.addmm_(low.reshape(-1, len(down)), up.t(), alpha=weight * scale)

    def add_gain(self, y: Tensor, x: Tensor, gain: Gain, weight: float, product: Product) -> None:
        """Adds what a gain adds to `y`, the layer of x, in place."""
        y.addcmul_(product(x), self._channels(gain.factor), value=weight)
        y.add_(self._channels(gain.shift), alpha=weight)

    def _channels(self, vector: Tensor) -> Tensor:
        """(out,) in a shape that fits the layer's output."""
        return vector

    def _tokens(self, y: Tensor) -> Tensor:
        """The layer's output with its channels last, a view."""
        return y

    def _low(self, x: Tensor, down: Tensor) -> Tensor:
        """(..., r)"""
        return F.linear(x, down)


class ConvAdapters(Adapters):
    """Adapters of a convolution. Its rows are taken one at a time."""

    def __init__(self, stride: tuple[int, ...], padding: tuple[int, ...]) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding

    def _channels(self, vector: Tensor) -> Tensor:
        return vector[:, None, None]

    def _tokens(self, y: Tensor) -> Tensor:
        return y.permute(0, 2, 3, 1)

    def _low(self, x: Tensor, down: Tensor) -> Tensor:
        if down.dim() == 2:
            return F.linear(x.permute(0, 2, 3, 1), down)
        return F.conv2d(x, down, None, self.stride, self.padding).permute(0, 2, 3, 1)


class Linear(nn.Linear):
    """A linear layer that may have adapters."""

    def __init__(self, into: int, out: int, bias: bool = True) -> None:
        super().__init__(into, out, bias)
        self.adapters = Adapters()

    def forward(self, x: Tensor) -> Tensor:
        return self.adapters.added(self.product(x), x, self.product)

    def product(self, x: Tensor) -> Tensor:
        """The layer without its adapters."""
        return super().forward(x)


class Conv2d(nn.Conv2d):
    """A convolution that may have adapters."""

    def __init__(
        self, into: int, out: int, kernel: int, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(into, out, kernel, stride, padding)
        self.adapters = ConvAdapters(self.stride, (padding, padding))

    def forward(self, x: Tensor) -> Tensor:
        return self.adapters.added(self.product(x), x, self.product)

    def product(self, x: Tensor) -> Tensor:
        """The layer without its adapters."""
        return super().forward(x)


def adapters_of(layer: nn.Module) -> Adapters:
    """A layer's adapters; for one that can have none, some that stay empty."""
    return layer.adapters if isinstance(layer, Linear | Conv2d) else Adapters()


def adapters_in(part: nn.Module) -> dict[str, Adapters]:
    """Adapters of all layers of a part, by name."""
    return {
        name: layer.adapters
        for name, layer in part.named_modules()
        if isinstance(layer, Linear | Conv2d)
    }


def make_adaptable(part: nn.Module) -> None:
    """Gives all linear layers of another library's part adapters, in place."""
    for layer in part.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear
            cast(Linear, layer).adapters = Adapters()


Given = Sequence[tuple[slice, Mapping[str, tuple[Share, ...]]]]
"""Rows of a batch, and their shares by the name of the layer."""


@contextmanager
def adapted(places: Mapping[str, Adapters], given: Given) -> Iterator[None]:
    """Has layers add adapters to rows of their batch meanwhile. places: a part's layers."""
    rows_of = _rows_of(given)
    try:
        for name, rows_shares in rows_of.items():
            places[name].rows = tuple(rows_shares)
        yield
    finally:
        for name in rows_of:
            places[name].rows = ()


def changes_of(part: nn.Module, given: Given) -> Iterator[tuple[str, Change]]:
    """Adapters as changes that compiled programs of a part make, by the names of the layers."""
    for name, rows_shares in _rows_of(given).items():
        layer = cast(Linear | Conv2d, part.get_submodule(name))
        yield name, partial(layer.adapters.added_to, rows_shares, product=layer.product)


def _rows_of(given: Given) -> dict[str, list[RowShares]]:
    """By the name of the layer."""
    rows_of: dict[str, list[RowShares]] = {}
    for rows, layers in given:
        for name, shares in layers.items():
            rows_of.setdefault(name, []).append(RowShares(rows, shares))
    return rows_of


def gain_of(
    weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, magnitude: Tensor
) -> tuple[Gain, Tensor]:
    """A layer's gain, and `up` with it in.

    weight: of the layer, (out, in) or (out, in, kh, kw); bias: (out,). up: with the scale in.
    magnitude: (out,), the lengths that rows of the adapted weight shall have. All on one device;
    the result is float32. A row of zeros gets no gain.
    """
    rows = weight.float().flatten(1)
    adapted_rows = torch.addmm(rows, up.float(), down.float().flatten(1))
    lengths = adapted_rows.norm(dim=1)
    gain = torch.where(lengths > 0, magnitude.float() / lengths, torch.ones_like(lengths))
    factor = gain - 1
    shift = torch.zeros_like(factor) if bias is None else -factor * bias.float()
    return Gain(factor, shift), up.float() * gain[:, None]
