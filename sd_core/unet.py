"""The denoising UNet of Stable Diffusion v1 (`UNetModel` in the CompVis code, 860 M weights)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sd_core.layers import (
    RES_NORM_EPS,
    Downsample,
    ResBlock,
    SpatialTransformer,
    Upsample,
    timestep_embedding,
)
from sd_core.spec import UNetSpec


class Stage(nn.ModuleList):
    """Layers run in turn, each given what it takes besides the feature map."""

    def forward(
        self, x: Tensor, emb: Tensor, context: Tensor, size: tuple[int, int] | None = None
    ) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            elif isinstance(layer, Upsample):
                x = layer(x, size)
            else:
                x = layer(x)
        return x


class UNet(nn.Module):
    """Predicts the noise in a latent: (B, 4, h, w) -> (B, 4, h, w)."""

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        self.spec = spec
        base, groups = spec.channels, spec.norm_groups
        emb_channels = 4 * base

        def res(channels: int, out_channels: int) -> ResBlock:
            return ResBlock(channels, out_channels, emb_channels, groups)

        def attend(channels: int) -> SpatialTransformer:
            return SpatialTransformer(channels, spec.context_dim, spec.num_heads, groups)

        self.time_embed = nn.Sequential(
            nn.Linear(base, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )

        width = base
        self.input_blocks = nn.ModuleList(
            [Stage([nn.Conv2d(spec.in_channels, base, 3, padding=1)])]
        )
        skips = [width]
        last = len(spec.channel_mult) - 1
        for level, mult in enumerate(spec.channel_mult):
            for _ in range(spec.num_res_blocks):
                layers: list[nn.Module] = [res(width, base * mult)]
                width = base * mult
                if spec.attention_levels[level]:
                    layers.append(attend(width))
                self.input_blocks.append(Stage(layers))
                skips.append(width)
            if level != last:
                self.input_blocks.append(Stage([Downsample(width)]))
                skips.append(width)

        self.middle_block = Stage([res(width, width), attend(width), res(width, width)])

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(spec.channel_mult))):
            for index in range(spec.num_res_blocks + 1):
                layers = [res(width + skips.pop(), base * mult)]
                width = base * mult
                if spec.attention_levels[level]:
                    layers.append(attend(width))
                if level and index == spec.num_res_blocks:
                    layers.append(Upsample(width))
                self.output_blocks.append(Stage(layers))

        self.out = nn.Sequential(
            nn.GroupNorm(groups, width, eps=RES_NORM_EPS),
            nn.SiLU(),
            nn.Conv2d(width, spec.out_channels, 3, padding=1),
        )

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """x: (B, 4, h, w); timesteps: (B,), fractional allowed; context: (B, S, context_dim)."""
        emb = self.time_embed(timestep_embedding(timesteps, self.spec.channels).to(x.dtype))
        skips = []
        for stage in self.input_blocks:
            x = stage(x, emb, context)
            skips.append(x)
        x = self.middle_block(x, emb, context)
        for stage in self.output_blocks:
            skip = skips.pop()
            # The size comes from the next skip, so sides that do not halve evenly still meet.
            size = (skips[-1].shape[-2], skips[-1].shape[-1]) if skips else None
            x = stage(torch.cat([x, skip], dim=1), emb, context, size)
        return self.out(x)
