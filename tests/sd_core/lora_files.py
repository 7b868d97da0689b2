"""Adapter files of small models, with seeded random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sd_core.spec import ModelSpec
from sd_core.weights.lora.names import layers_of


def lora_tensors(
    spec: ModelSpec, seed: int, *, rank: int = 4, parts: str = "", dora: bool = False
) -> dict[str, Tensor]:
    """In kohya's form, for all layers whose name has `parts` in it; those of DoRA with lengths."""
    _, shapes = layers_of(spec)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for (component, name), (out, into, *kernel) in shapes.items():
        if parts not in f"{component}.{name}":
            continue
        prefix = "lora_unet_" if component == "unet" else "lora_te_"
        layer = prefix + name.removeprefix("transformer.").replace(".", "_")
        ones = [1] * len(kernel)
        size = into * torch.Size(kernel).numel()
        down = torch.randn(rank, into, *kernel, generator=generator) / size**0.5
        tensors[f"{layer}.lora_down.weight"] = down
        tensors[f"{layer}.lora_up.weight"] = torch.randn(out, rank, *ones, generator=generator) / 4
        tensors[f"{layer}.alpha"] = torch.tensor(rank / 2)
        if dora:
            lengths = 0.5 + torch.rand(out, generator=generator)
            tensors[f"{layer}.dora_scale"] = lengths.reshape(out, *[1] * (1 + len(kernel)))
    return tensors


def lora_file(folder: Path, tensors: dict[str, Tensor], name: str = "lora") -> Path:
    path = folder / f"{name}.safetensors"
    save_file(tensors, path)
    return path
