"""Blocks of the model whose group norms take SiLU and a shift along, in one kernel on CUDA.

Each is a block of `sd_core.model` with the same parts under the same names, and another `forward`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from sd_core.gpu.triton_norm import group_norm
from sd_core.model import vae
from sd_core.model.fusing import exchange_blocks
from sd_core.model.layers import ResBlock


class FusedGroupNorm(nn.GroupNorm):
    """Group norm, and SiLU of it where that is wanted."""

    silu = False

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """x: (B, channels, h, w) in channels-last; shift: (B, channels), added to x before."""
        return group_norm(
            *(x, self.num_groups, self.weight, self.bias, self.eps), silu=self.silu, added=shift
        )


class FusedGroupNormSiLU(FusedGroupNorm):
    """SiLU of a group norm."""

    silu = True


class FusedResBlock(ResBlock):
    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        norm, conv = self.out_layers[0], self.out_layers[3]
        return conv(norm(self.in_layers(x), shift)).add_(self.skip_connection(x))


class FusedResnetBlock(vae.ResnetBlock):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return h.add_(self.shortcut(x))


class FusedEncoder(vae.Encoder):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.norm_out(self.body(x)))


class FusedDecoder(vae.Decoder):
    def forward(self, z: Tensor) -> Tensor:
        return self.conv_out(self.norm_out(self.body(z)))


_FUSED: Mapping[type[nn.Module], type[nn.Module]] = {
    ResBlock: FusedResBlock,
    vae.ResnetBlock: FusedResnetBlock,
    vae.Encoder: FusedEncoder,
    vae.Decoder: FusedDecoder,
}


def fuse(part: nn.Module) -> None:
    """Make the blocks of a part, the UNet or the autoencoder, fused ones, in place."""
    exchange_blocks(part, FusedGroupNorm, FusedGroupNormSiLU, _FUSED)
