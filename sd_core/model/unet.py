"""The denoising UNet of Stable Diffusion v1 (`UNetModel` in the CompVis code, 860 M weights)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from sd_core.model.adapters import Conv2d, adapters_in
from sd_core.model.layers import (
    RES_NORM_EPS,
    Context,
    Downsample,
    KeysValues,
    ResBlock,
    SpatialTransformer,
    TimeEmbedding,
    Upsample,
    guidance_embedding,
    timestep_embedding,
)
from sd_core.model.places import Place
from sd_core.spec import UNetSpec

_JOINED = ("backbone", "skip")
"""Inputs of a stage of the decoder: what comes from below, and from the encoder."""


def stack_contexts(rows: Sequence[Sequence[KeysValues]]) -> list[KeysValues]:
    """Contexts of a batch from those of its rows, each without a batch axis."""
    return [
        (torch.stack([keys for keys, _ in layer]), torch.stack([values for _, values in layer]))
        for layer in zip(*rows, strict=True)
    ]


B = TypeVar("B", bound=nn.Module)


class Stage(nn.ModuleList):
    """Layers run in turn, each taking the next of what it needs besides the feature map."""

    def forward(
        self,
        x: Tensor,
        shifts: Iterator[Tensor],
        contexts: Iterator[Context],
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, next(shifts))
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, next(contexts))
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

        self.time_embed = TimeEmbedding(base, emb_channels, spec.guidance_dim)

        width = base
        self.input_blocks = nn.ModuleList([Stage([Conv2d(spec.in_channels, base, 3, padding=1)])])
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
            nn.GroupNorm(groups, width, RES_NORM_EPS),
            nn.SiLU(inplace=True),
            Conv2d(width, spec.out_channels, 3, padding=1),
        )
        # Layers that are laid out for a CPU take these over.
        self.adapters = adapters_in(self)
        self.attentions = self._attentions()
        joints = {f"{part}.{level}": Place() for part in _JOINED for level in range(2)}
        self.places = self.attentions | joints

    def embed(self, timesteps: Tensor, guidance: Tensor | None = None) -> Tensor:
        """timesteps: (T,), fractional allowed -> (T, n): what they add in each residual block, side
        by side in the order of `self.modules()`. It can be made for all steps of a table at once.

        guidance: (T,) scales, for a UNet that is told them.
        """
        dtype = next(self.time_embed.parameters()).dtype
        told = None
        if guidance is not None and self.spec.guidance_dim:
            told = guidance_embedding(guidance, self.spec.guidance_dim).to(dtype)
        emb = self.time_embed(timestep_embedding(timesteps, self.spec.channels).to(dtype), told)
        return torch.cat([block.emb_layers(emb) for block in self._blocks(ResBlock)], dim=1)

    def project(self, context: Tensor) -> list[KeysValues]:
        """context: (B, S, context_dim) -> keys and values for each attention to it, in the order of
        `self.modules()`. They serve all steps of a prompt.
        """
        return [block.keys_values(context) for block in self._blocks(SpatialTransformer)]

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | Sequence[Context]) -> Tensor:
        """x: (B, 4, h, w); timesteps: (B,), or what `embed` made of them, (B, n); context:
        (B, S, context_dim), or what `project` made of it.
        """
        emb = self.embed(timesteps) if timesteps.dim() == 1 else timesteps
        widths = [block.emb_layers[1].out_features for block in self._blocks(ResBlock)]
        shifts = iter(emb.split(widths, dim=1))
        projected = self.project(context) if isinstance(context, Tensor) else context
        contexts: Iterator[Context] = iter(projected)
        skips = []
        for stage in self.input_blocks:
            x = stage(x, shifts, contexts)
            skips.append(x)
        x = self.middle_block(x, shifts, contexts)
        for number, stage in enumerate(self.output_blocks):
            skip = skips.pop()
            x, skip = self._joined(number // (self.spec.num_res_blocks + 1), x, skip)
            # The size comes from the next skip, so sides that do not halve evenly still meet.
            size = (skips[-1].shape[-2], skips[-1].shape[-1]) if skips else None
            x = stage(torch.cat([x, skip], dim=1), shifts, contexts, size)
        return self.out(x)

    def _joined(self, level: int, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of a stage of the decoder. level: counted from the deepest."""
        if level > 1:
            return x, skip
        backbone, other = (self.places[f"{part}.{level}"] for part in _JOINED)
        return backbone.changed(x, skip), other.changed(skip, x)

    def _attentions(self) -> dict[str, Place]:
        """Places of what tokens get of themselves, by the names that
        `sd_core.setting_texts.layers_called` gives.
        """
        of_level = self.spec.num_res_blocks + 1  # blocks; on the way in the last of them halves

        def named(way: str, stages: nn.ModuleList) -> dict[str, Place]:
            return {
                f"{way}.{number // of_level}.{number % of_level}": layer.of_itself
                for number, stage in enumerate(stages)
                for layer in stage.modules()
                if isinstance(layer, SpatialTransformer)
            }

        middle = next(m for m in self.middle_block if isinstance(m, SpatialTransformer))
        down = named("down", self.input_blocks[1:])
        return down | {"mid": middle.of_itself} | named("up", self.output_blocks)

    def in_order(self) -> Iterator[tuple[str, nn.Module]]:
        """Its modules by name, in the order that a latent comes by them."""
        return self.named_modules()

    def _blocks(self, kind: type[B]) -> list[B]:
        """All of a kind, in the order that `forward` comes by them."""
        return [module for module in self.modules() if isinstance(module, kind)]
