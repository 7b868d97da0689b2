"""Randomness belongs to one image: a CPU generator from its own seed.

The CPU's generator gives the same numbers on every machine, whatever the accelerator, and an
image draws the same numbers alone or in any batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def generator_for(seed: int) -> torch.Generator:
    """A fresh CPU generator. seed: 0 to 2^64 - 1; 0 is a seed like any other."""
    return torch.Generator("cpu").manual_seed(seed)


def draw_noise(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Unit normal float32 of this shape, drawn on the CPU with a leading batch axis of one.

    The axis matters: it is how diffusers draws for a list of generators, so that both get the
    same numbers.
    """
    return torch.randn((1, *shape), generator=generator, dtype=torch.float32)[0]
