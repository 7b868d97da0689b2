"""diffusers' schedulers, configured as Stable Diffusion v1 is published, run on any model."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import diffusers
import torch
from torch import Tensor

from sd_core.spec import SAMPLER_TABLE

Model = Callable[[Tensor, float], Tensor]
"""Guided model output of unit-variance latents (1, 4, h, w) at a timestep."""

# The scheduler configuration that the published v1 folders carry.
PUBLISHED = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}
EXTRA = {
    "plms": {"skip_prk_steps": True, "set_alpha_to_one": False},
    "ddim": {"set_alpha_to_one": False, "clip_sample": False},
    "ddpm": {"clip_sample": False, "timestep_spacing": "leading"},
}
"""Arguments that the class of a sampler needs besides, to compute the same."""


def scheduler(sampler: str, *, karras: bool = False):
    """The diffusers scheduler that a sampler's name stands for."""
    extra = EXTRA.get(sampler, {})
    if karras:
        extra = {**extra, "use_karras_sigmas": True}
    return getattr(diffusers, SAMPLER_TABLE[sampler].diffusers)(**PUBLISHED, **extra)


def run(
    sampler: str,
    steps: int,
    model: Model,
    noise: Tensor,
    generator: torch.Generator,
    *,
    karras: bool = False,
    eta: float = 0.0,
    start: int | None = None,
    init: Tensor | None = None,
) -> Tensor:
    """Final latents of diffusers' own loop. noise, init: (1, 4, h, w).

    start: the grid point at which `init` enters, as diffusers' img2img pipeline slices it.
    """
    peer = scheduler(sampler, karras=karras)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer.set_timesteps(steps)
    timesteps = peer.timesteps
    if init is None:
        x = noise * peer.init_noise_sigma
    else:
        timesteps = enter_at(peer, sampler, start)
        x = peer.add_noise(init, noise, timesteps[:1])
    for t in timesteps:
        eps = model(peer.scale_model_input(x, t), float(t))
        more = {"eta": eta} if sampler == "ddim" else {}
        if sampler in ("ddim", "ddpm", "euler_a"):
            more["generator"] = generator
        x = peer.step(eps, t, x, **more).prev_sample
    return x


def enter_at(peer, sampler: str, start: int) -> Tensor:
    """Timesteps from a grid point on, with the scheduler's state made to fit.

    PNDM: diffusers slices past the repeated timestep that its first step relies on, and from then
    on asks the model one timestep too far; here the repetition is put back. LMS: its weights count
    from the start of the whole grid, so it is given the remaining grid as a whole.
    """
    if sampler == "plms":
        grid = torch.cat([peer.timesteps[:1], peer.timesteps[2:]])[start:]
        timesteps = torch.cat([grid[:1], grid[1:2], grid[1:]])
        peer.timesteps = timesteps
        return timesteps
    if sampler == "lms":
        peer.timesteps, peer.sigmas = peer.timesteps[start:], peer.sigmas[start:]
        return peer.timesteps
    order = getattr(peer, "order", 1)
    if hasattr(peer, "set_begin_index"):
        peer.set_begin_index(start * order)
    return peer.timesteps[start * order :]
