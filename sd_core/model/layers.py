"""Building blocks shared by the UNet and the autoencoder.

Parameter names are those of the CompVis single-file checkpoints, so that such a file loads by
name. Activations are (batch, channels, height, width) or (batch, tokens, channels) in the model's
own dtype. Results of a layer that nothing else needs are changed in place: new memory costs a CPU
more than the sum that goes into it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.model.adapters import Conv2d, Linear
from sd_core.model.beside import change
from sd_core.model.places import Place

# The CompVis code uses two values, and images change visibly when they are mixed up.
RES_NORM_EPS = 1e-5
ATTENTION_NORM_EPS = 1e-6


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding of (possibly fractional) timesteps, cosines first.

    timesteps: (B,) float. Returns (B, dim) float32 (Vaswani et al. 2017, sec. 3.5).
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    freqs = torch.exp(-math.log(max_period) * exponents)
    args = timesteps.float()[:, None] * freqs[None]
    return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)


def guidance_embedding(guidance: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of guidance scales, sines first, as LCM was trained with (Luo et al.
    2023).

    guidance: (B,), 1 for none. dim: even, above 2. Returns (B, dim) float32.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=guidance.device) / (half - 1)
    args = ((guidance.float() - 1) * 1000)[:, None] * torch.exp(-math.log(10_000.0) * exponents)
    return torch.cat([torch.sin(args), torch.cos(args)], dim=-1)


class TimeEmbedding(nn.Sequential):
    """Layers that make one embedding of a timestep and, where a model is told it, of guidance."""

    def __init__(self, channels: int, out_channels: int, guidance_dim: int) -> None:
        super().__init__(
            Linear(channels, out_channels), nn.SiLU(), Linear(out_channels, out_channels)
        )
        # After the others, which are called by their numbers.
        self.cond_proj = Linear(guidance_dim, channels, bias=False) if guidance_dim else None

    def forward(self, timesteps: Tensor, guidance: Tensor | None = None) -> Tensor:
        """timesteps: (B, channels); guidance: (B, guidance_dim), if it has that; both embedded.
        Returns (B, out_channels).
        """
        if self.cond_proj is not None:
            if guidance is None:
                raise ValueError("this model is told its guidance, and none was given")
            timesteps = timesteps + self.cond_proj(guidance)
        first, between, last = self[0], self[1], self[2]
        return last(between(first(timesteps)))


class ResBlock(nn.Module):
    """Residual block whose middle is shifted by what `emb_layers` makes of the timestep embedding.

    The UNet calls those for all its blocks at once, for a shift depends on the timestep alone.
    """

    def __init__(self, channels: int, out_channels: int, emb_channels: int, groups: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, channels, RES_NORM_EPS),
            nn.SiLU(inplace=True),
            Conv2d(channels, out_channels, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, out_channels, RES_NORM_EPS),
            nn.SiLU(inplace=True),
            nn.Identity(),  # the original's dropout: the convolution keeps its name, out_layers.3
            Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else Conv2d(channels, out_channels, 1)
        )

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """x: (B, channels, h, w); shift: (B, out_channels)."""
        h = self.in_layers(x)
        h += shift[:, :, None, None]
        h = self.out_layers(h)
        h += self.skip_connection(x)
        return h


KeysValues = tuple[Tensor, Tensor]
"""Keys and values of a context, each (B, heads, S, dim / heads)."""


class LongRow(NamedTuple):
    """A row of the batch whose context is longer than that of the others.

    keys, values: (1, heads, S, dim / heads).
    """

    row: int
    keys: Tensor
    values: Tensor


class LongContext(NamedTuple):
    """The context of a batch in which rows have more than the others.

    keys, values: of all rows, (B, heads, S, dim / heads); those of `longer` are not used.
    """

    keys: Tensor
    values: Tensor
    longer: tuple[LongRow, ...]


class PlacedContext(NamedTuple):
    """The context of a batch whose longer ones a compiled program finds in `sd_core.model.beside`.

    keys, values: as in `LongContext`. place: where the others are.
    """

    keys: Tensor
    values: Tensor
    place: str


Context = KeysValues | LongContext | PlacedContext
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend(kernel: Kernel, q: Tensor, context: Context) -> Tensor:
    """Attention of each row to its context: (B, heads, T, d).

    kernel: of queries, keys and values. The other rows are given to it together whatever is among
    them, and each longer one by itself: so the bits of a row do not depend on its neighbours.
    """
    out = kernel(q, context[0], context[1])
    if isinstance(context, LongContext):
        attend_longer(kernel, context.longer, out, q)
    elif isinstance(context, PlacedContext):
        change(out, q, context.place)
    return out


def attend_longer(kernel: Kernel, longer: Sequence[LongRow], out: Tensor, q: Tensor) -> None:
    """Puts the attention of longer rows where they are in `out`, that of the batch."""
    for row, keys, values in longer:
        own = slice(row, row + 1)
        out[own] = kernel(q[own], keys, values)


def split_heads(t: Tensor, heads: int) -> Tensor:
    """(B, T, dim) -> (B, heads, T, dim / heads), a view."""
    return t.unflatten(-1, (heads, -1)).transpose(1, 2)


class CrossAttention(nn.Module):
    """Multi-head attention from tokens to a context (to themselves, where none is given)."""

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = Linear(dim, dim, bias=False)
        self.to_k = Linear(context_dim, dim, bias=False)
        self.to_v = Linear(context_dim, dim, bias=False)
        self.to_out = nn.Sequential(Linear(dim, dim))
        self.of_itself = Place()  # what tokens get of themselves

    def keys_values(self, context: Tensor) -> KeysValues:
        """context: (B, S, context_dim) -> keys and values, each (B, heads, S, dim / heads)."""
        keys, values = self.to_k(context), self.to_v(context)
        return split_heads(keys, self.heads), split_heads(values, self.heads)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """x: (B, T, dim); context: its keys and values, by default those of x itself."""
        q = split_heads(self.to_q(x), self.heads)
        of = self.keys_values(x) if context is None else context
        out = attend(F.scaled_dot_product_attention, q, of)
        if context is None:
            self.of_itself.changed(out, of[1])
        return self.to_out(out.transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """Linear layer gated by a GELU of its second half (Shazeer 2020)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = Linear(dim, out_dim * 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return F.gelu(gate).mul_(value)


class FeedForward(nn.Module):
    """Two linear layers, the first of them gated."""

    def __init__(self, dim: int, mult: int = 4) -> None:
        super().__init__()
        # The middle entry stands for the original's dropout: it keeps the name net.2.
        self.net = nn.Sequential(GEGLU(dim, dim * mult), nn.Identity(), Linear(dim * mult, dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, dim)."""
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the prompt, feed-forward; each residual, norm first."""

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, dim, heads)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x: (B, T, dim); context: the prompts', of attn2."""
        x = self.attn1(self.norm1(x)).add_(x)
        x = self.attn2(self.norm2(x), context).add_(x)
        return self.ff(self.norm3(x)).add_(x)


class SpatialTransformer(nn.Module):
    """A transformer block over the pixels of a feature map."""

    def __init__(self, channels: int, context_dim: int, heads: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, ATTENTION_NORM_EPS)
        self.proj_in = Conv2d(channels, channels, 1)
        # A list of one, as the checkpoints name it.
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, context_dim, heads)])
        self.proj_out = Conv2d(channels, channels, 1)

    def keys_values(self, context: Tensor) -> KeysValues:
        """context: (B, S, context_dim) -> what the block attends to."""
        return cast(TransformerBlock, self.transformer_blocks[0]).attn2.keys_values(context)

    @property
    def of_itself(self) -> Place:
        """Place of what tokens get of themselves."""
        return cast(TransformerBlock, self.transformer_blocks[0]).attn1.of_itself

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x: (B, channels, h, w)."""
        # (B, h·w, channels); contiguous, or every layer of the block would copy it.
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2).contiguous()
        tokens = self.transformer_blocks[0](tokens, context)
        return self.proj_out(tokens.transpose(1, 2).unflatten(2, x.shape[-2:])).add_(x)


class Downsample(nn.Module):
    """Halves a feature map by a strided convolution, symmetrically padded (UNet)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Doubles a feature map: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """size: (height, width) to reach where it is not twice the input's (odd skip maps)."""
        if size is None:
            size = (2 * x.shape[-2], 2 * x.shape[-1])
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
