"""Samplers that diffusers lacks or has wrong, step by step as their authors' programs run them.

In the scaling of Karras et al. 2022: x is the clean latent plus σ times unit noise. k-diffusion,
whose functions are named, cannot be installed without a training stack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
"""The clean latent that a model sees in x at noise level σ."""


def dpmpp_2s_a(x: Tensor, sigmas: Sequence[float], denoise: Denoise, noise: Callable) -> Tensor:
    """`sample_dpmpp_2s_ancestral`, eta 1."""
    for sigma, to in pairwise(sigmas):
        clean = denoise(x, sigma)
        down, up = ancestral(sigma, to)
        if down == 0:
            x = x + (x - clean) / sigma * (down - sigma)
            continue
        h = math.log(sigma) - math.log(down)
        middle = math.exp(math.log(sigma) - h / 2)
        half = middle / sigma * x - math.expm1(-h / 2) * clean
        x = down / sigma * x - math.expm1(-h) * denoise(half, middle)
        x = x + noise() * up
    return x


def dpmpp_3m_sde(x: Tensor, sigmas: Sequence[float], denoise: Denoise, noise: Callable) -> Tensor:
    """`sample_dpmpp_3m_sde`, eta 1."""
    before: list[tuple[Tensor, float]] = []  # clean latents, and the steps from them, newest first
    for sigma, to in pairwise(sigmas):
        clean = denoise(x, sigma)
        if to == 0:
            return clean
        h = math.log(sigma) - math.log(to)
        x = math.exp(-2 * h) * x - math.expm1(-2 * h) * clean
        phi_2 = math.expm1(-2 * h) / (2 * h) + 1
        phi_3 = phi_2 / (2 * h) - 0.5
        if len(before) == 1:
            ((clean_1, h_1),) = before
            x = x + phi_2 * (clean - clean_1) / (h_1 / h)
        elif before:
            (clean_1, h_1), (clean_2, h_2) = before
            r_0, r_1 = h_1 / h, h_2 / h
            d_0, d_1 = (clean - clean_1) / r_0, (clean_1 - clean_2) / r_1
            slope = d_0 + (d_0 - d_1) * r_0 / (r_0 + r_1)
            x = x + phi_2 * slope - phi_3 * (d_0 - d_1) / (r_0 + r_1)
        x = x + noise() * to * math.sqrt(-math.expm1(-2 * h))
        before = [(clean, h), *before][:2]
    return x


def ipndm(x: Tensor, sigmas: Sequence[float], denoise: Denoise, noise: Callable) -> Tensor:
    """ComfyUI's `sample_ipndm`, order 4."""
    slopes: list[Tensor] = []
    weights = (
        [1],
        [3 / 2, -1 / 2],
        [23 / 12, -16 / 12, 5 / 12],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    )
    for sigma, to in pairwise(sigmas):
        slopes = [(x - denoise(x, sigma)) / sigma, *slopes][:4]
        x = x + (to - sigma) * sum(
            w * slope for w, slope in zip(weights[len(slopes) - 1], slopes, strict=True)
        )
    return x


def ancestral(sigma: float, to: float) -> tuple[float, float]:
    """`get_ancestral_step`, eta 1: the level to step down to, and that of the noise added."""
    up = min(to, (to**2 * (sigma**2 - to**2) / sigma**2) ** 0.5)
    return (to**2 - up**2) ** 0.5, up
