"""Blocks of the model with kernels of our own in them: fewer passes over memory, fewer roundings.

Each is a block of `sd_core.model` with the same parts under the same names, and another `forward`:
norms take SiLU and a shift along, products the residual sum. For bfloat16 on CPUs with AVX-512.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from sd_core.cpu.kernels import attention, group_norm, layer_norm
from sd_core.cpu.native_layers import OwnLinear, PointwiseConv2d, WinogradConv2d
from sd_core.model import vae
from sd_core.model.fusing import exchange_blocks
from sd_core.model.layers import (
    Context,
    CrossAttention,
    ResBlock,
    SpatialTransformer,
    TransformerBlock,
    Upsample,
    attend,
    split_heads,
)


def plus(layer: nn.Module, x: Tensor, added: Tensor) -> Tensor:
    """The layer of x, and `added`, which is of its shape; in one kernel where it is one of ours."""
    if isinstance(layer, OwnLinear | PointwiseConv2d | WinogradConv2d):
        return layer.plus(x, added)
    out: Tensor = layer(x)
    return out.add_(added)


class FusedGroupNorm(nn.GroupNorm):
    """Group norm, and SiLU of it where that is wanted."""

    silu = False

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """x: (B, channels, h, w); shift: (B, channels), added to x before."""
        return group_norm(
            *(x, self.num_groups, self.weight, self.bias, self.eps), silu=self.silu, added=shift
        )


class FusedGroupNormSiLU(FusedGroupNorm):
    """SiLU of a group norm."""

    silu = True


class FusedLayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


class FusedResBlock(ResBlock):
    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        norm, conv = self.out_layers[0], self.out_layers[3]
        return plus(conv, norm(self.in_layers(x), shift), self.skip_connection(x))


class FusedCrossAttention(CrossAttention):
    def attend(self, x: Tensor, context: Context) -> Tensor:
        """The attention of x: (B, T, dim) -> (B, T, dim), without the last layer."""
        q = split_heads(self.to_q(x), self.heads)
        return attend(attention, q, context).transpose(1, 2).flatten(2)


class FusedTransformerBlock(TransformerBlock):
    def forward(self, x: Tensor, context: Context) -> Tensor:
        own: Any = self.attn1  # packed by now: a `PackedSelfAttention`
        cross = cast(FusedCrossAttention, self.attn2)
        x = own.plus(self.norm1(x), x)
        x = plus(cross.to_out[0], cross.attend(self.norm2(x), context), x)
        return plus(self.ff.net[2], self.ff.net[0](self.norm3(x)), x)


class FusedSpatialTransformer(SpatialTransformer):
    def forward(self, x: Tensor, context: Context) -> Tensor:
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2).contiguous()
        tokens = self.transformer_blocks[0](tokens, context)
        return plus(self.proj_out, tokens.transpose(1, 2).unflatten(2, x.shape[-2:]), x)


class FusedUpsample(Upsample):
    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        conv: nn.Module = self.conv
        if isinstance(conv, WinogradConv2d):
            height, width = x.shape[-2:]
            return conv.of_enlarged(x, (2 * height, 2 * width) if size is None else size)
        return super().forward(x, size)


class FusedResnetBlock(vae.ResnetBlock):
    def forward(self, x: Tensor) -> Tensor:
        return plus(self.conv2, self.norm2(self.conv1(self.norm1(x))), self.shortcut(x))


class FusedAttnBlock(vae.AttnBlock):
    def forward(self, x: Tensor) -> Tensor:
        return plus(self.proj_out, self.attend(self.norm(x)), x)


class FusedEncoder(vae.Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.norm_out(self.body(x)))


class FusedDecoder(vae.Decoder):
    def forward(self, z: Tensor) -> Tensor:
        return self.conv_out(self.norm_out(self.body(z)))


_FUSED: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.LayerNorm: FusedLayerNorm,
    ResBlock: FusedResBlock,
    CrossAttention: FusedCrossAttention,
    TransformerBlock: FusedTransformerBlock,
    SpatialTransformer: FusedSpatialTransformer,
    Upsample: FusedUpsample,
    vae.ResnetBlock: FusedResnetBlock,
    vae.AttnBlock: FusedAttnBlock,
    vae.Encoder: FusedEncoder,
    vae.Decoder: FusedDecoder,
}


def fuse(part: nn.Module) -> None:
    """Make the blocks of a part, the UNet or the autoencoder, fused ones, in place."""
    exchange_blocks(part, FusedGroupNorm, FusedGroupNormSiLU, _FUSED)
