"""The KL autoencoder of Stable Diffusion v1: images to latents an eighth of their side, and back.

Parameter names follow the CompVis checkpoints (`first_stage_model.*`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.model.layers import ATTENTION_NORM_EPS, Upsample
from sd_core.spec import VAESpec

NORM_EPS = ATTENTION_NORM_EPS
LOGVAR_RANGE = (-30.0, 20.0)  # as the CompVis DiagonalGaussianDistribution clamps it


def silu(x: Tensor) -> Tensor:
    """SiLU, in the memory of x."""
    return F.silu(x, inplace=True)


class ResnetBlock(nn.Module):
    """Residual block: norm, SiLU and convolution, twice."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, NORM_EPS)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        h = self.conv2(silu(self.norm2(h)))
        h += self.shortcut(x)
        return h

    def shortcut(self, x: Tensor) -> Tensor:
        """x, of as many channels as come out."""
        return self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x


class AttnBlock(nn.Module):
    """Single-head self-attention over the pixels of a feature map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, NORM_EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def attend(self, h: Tensor) -> Tensor:
        """The attention of a feature map, without the last layer."""
        q, k, v = (
            layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v)
        )  # (B, 1, h·w, channels): one head
        out = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return out.transpose(1, 2).unflatten(2, h.shape[-2:])

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_out(self.attend(self.norm(x))).add_(x)


class Downsample(nn.Module):
    """Halves a feature map; padded right and below only, as the original does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Mid(nn.Module):
    """The lowest resolution, the only one with attention."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Stage(nn.Module):
    """One resolution: residual blocks, then the way to the next, unless this is the last."""

    def __init__(
        self,
        blocks: list[ResnetBlock],
        *,
        downsample: Downsample | None = None,
        upsample: Upsample | None = None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.downsample = downsample
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.downsample is not None:
            x = self.downsample(x)
        return x if self.upsample is None else self.upsample(x)


class Encoder(nn.Module):
    """Images (B, 3, 8h, 8w) in [-1, 1] -> mean and log variance (B, 2·latent_channels, h, w)."""

    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        groups, width = spec.norm_groups, spec.channels
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList()
        last = len(spec.channel_mult) - 1
        for level, mult in enumerate(spec.channel_mult):
            blocks = []
            for _ in range(spec.num_res_blocks):
                blocks.append(ResnetBlock(width, spec.channels * mult, groups))
                width = spec.channels * mult
            downsample = None if level == last else Downsample(width)
            self.down.append(Stage(blocks, downsample=downsample))
        self.mid = Mid(width, groups)
        self.norm_out = nn.GroupNorm(groups, width, NORM_EPS)
        self.conv_out = nn.Conv2d(width, 2 * spec.latent_channels, 3, padding=1)

    def body(self, x: Tensor) -> Tensor:
        """All but the last norm and convolution."""
        x = self.conv_in(x)
        for stage in self.down:
            x = stage(x)
        return self.mid(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(silu(self.norm_out(self.body(x))))


class Decoder(nn.Module):
    """Latents (B, latent_channels, h, w) -> images (B, 3, 8h, 8w)."""

    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        groups, width = spec.norm_groups, spec.channels * spec.channel_mult[-1]
        self.conv_in = nn.Conv2d(spec.latent_channels, width, 3, padding=1)
        self.mid = Mid(width, groups)
        stages = []
        for level, mult in reversed(list(enumerate(spec.channel_mult))):
            blocks = []
            for _ in range(spec.num_res_blocks + 1):
                blocks.append(ResnetBlock(width, spec.channels * mult, groups))
                width = spec.channels * mult
            stages.append(Stage(blocks, upsample=Upsample(width) if level else None))
        # Numbered by level as in the checkpoints: the deepest, which runs first, is up.3.
        self.up = nn.ModuleList(reversed(stages))
        self.norm_out = nn.GroupNorm(groups, width, NORM_EPS)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def body(self, z: Tensor) -> Tensor:
        """All but the last norm and convolution."""
        x = self.mid(self.conv_in(z))
        for stage in reversed(self.up):
            x = stage(x)
        return x

    def forward(self, z: Tensor) -> Tensor:
        return self.conv_out(silu(self.norm_out(self.body(z))))


class AutoencoderKL(nn.Module):
    """Encoder and decoder, with the 1x1 convolutions around the latent; latents are unscaled."""

    def __init__(self, spec: VAESpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec)
        self.decoder = Decoder(spec)
        self.quant_conv = nn.Conv2d(2 * spec.latent_channels, 2 * spec.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(spec.latent_channels, spec.latent_channels, 1)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation of images in [-1, 1], each (B, channels, h, w)."""
        mean, logvar = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        return mean, torch.exp(0.5 * logvar.clamp(*LOGVAR_RANGE))

    def in_order(self) -> Iterator[tuple[str, nn.Module]]:
        """Its modules by name, in the order that an image comes by them, there and back."""
        back = ["conv_in", "mid", *(f"up.{n}" for n in reversed(range(len(self.decoder.up))))]
        back = [f"decoder.{name}" for name in (*back, "conv_out")]
        for name in ("encoder", "quant_conv", "post_quant_conv", *back):
            yield from self.get_submodule(name).named_modules(prefix=name)

    def decode(self, z: Tensor) -> Tensor:
        """Images of unscaled latents; close to [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(z))
