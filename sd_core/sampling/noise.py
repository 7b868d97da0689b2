"""Randomness belongs to one image: a generator from its own seed, on the host.

It gives the same numbers on every machine, whatever the accelerator, and an image draws the same
numbers alone or in any batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sd_core.sampling.philox import PhiloxGenerator
from sd_core.spec import NOISES, SEED_LIMIT, Sampling

Generator = torch.Generator | PhiloxGenerator

SAME_DIRECTION = 0.9995
"""Mean cosine above which noise is mixed in a straight line."""


def generator_for(seed: int, noise: str = NOISES[0]) -> Generator:
    """A fresh generator. seed: 0 to 2^64 - 1; 0 is a seed like any other.

    noise: "cpu" for numbers as PyTorch draws them on CPUs, "gpu" for those of CUDA devices.
    """
    if noise == "gpu":
        return PhiloxGenerator(seed)
    return torch.Generator("cpu").manual_seed(seed)


def fill(out: Tensor, generator: Generator) -> None:
    """Writes unit normal numbers to a float32 CPU tensor."""
    if isinstance(generator, PhiloxGenerator):
        generator.fill(out)
    else:
        out.normal_(generator=generator)


def draw_noise(generator: Generator, shape: tuple[int, ...]) -> Tensor:
    """Unit normal float32 of this shape, drawn on the CPU with a leading batch axis of one.

    The axis matters: it is how diffusers draws for a list of generators, so that both get the
    same numbers.
    """
    noise = torch.empty((1, *shape), dtype=torch.float32)
    fill(noise, generator)
    return noise[0]


def noise_of(sampling: Sampling, *, after: int = 0) -> tuple[Tensor, Generator]:
    """Noise (4, h, w) that an image starts from, and the generator of its steps' noise.

    after: draws of the generator before it.
    """
    shape = (4, *sampling.latent_shape)

    def drawn(seed: int) -> tuple[Tensor, Generator]:
        generator = generator_for(seed, sampling.noise)
        for _ in range(after):
            draw_noise(generator, shape)
        return draw_noise(generator, shape), generator

    noise, generator = drawn(sampling.seed)
    if sampling.variation_strength:
        other, _ = drawn(sampling.variation_seed)
        noise = mixed(noise, other, sampling.variation_strength)
    if sampling.eta_noise_seed_delta:
        seed = (sampling.seed + sampling.eta_noise_seed_delta) % SEED_LIMIT
        generator = generator_for(seed, sampling.noise)
    return noise, generator


def mixed(noise: Tensor, other: Tensor, share: float) -> Tensor:
    """Spherical interpolation of noise (4, h, w) to that of a variation, as AUTOMATIC1111's web UI
    does it: angles are taken between columns, along h, not between the whole tensors.

    share: 0 for `noise`, 1 for `other`.
    """
    if share in (0.0, 1.0):
        return other if share else noise
    cosines = noise / noise.norm(dim=1, keepdim=True) * (other / other.norm(dim=1, keepdim=True))
    cosine = cosines.sum(1)
    if cosine.mean() > SAME_DIRECTION:  # also as there, where the shares change places
        return noise * share + other * (1 - share)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    shares = torch.sin((1 - share) * angle) / sine, torch.sin(share * angle) / sine
    return shares[0].unsqueeze(1) * noise + shares[1].unsqueeze(1) * other
