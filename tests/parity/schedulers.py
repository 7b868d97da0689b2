"""diffusers' schedulers, configured as Stable Diffusion v1 is published, run on any model."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import diffusers
import torch
from torch import Tensor

from sd_core.sampler_table import SAMPLER_TABLE
from sd_core.sampling.noise import generator_for

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
EXTRA: dict[str, dict[str, Any]] = {
    "plms": {"skip_prk_steps": True, "set_alpha_to_one": False},
    "ddim": {"set_alpha_to_one": False, "clip_sample": False},
    "ddpm": {"clip_sample": False, "timestep_spacing": "leading"},
    "dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++"},
    "dpmpp_3m": {"solver_order": 3},
    "unipc_bh1": {"solver_type": "bh1"},
    "lcm": {"clip_sample": False, "set_alpha_to_one": False},
    "tcd": {"clip_sample": False, "set_alpha_to_one": False},
}
"""Arguments that the class of a sampler needs besides, to compute the same."""

SCHEDULES: dict[str, dict[str, Any]] = {
    "default": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
}
"""Arguments that stand for a schedule. (Not of beta, which diffusers has over σ: see the tests.)"""


def peer_class(sampler: str) -> Any:
    """The class of diffusers that a sampler's name stands for; None if there is none."""
    name = SAMPLER_TABLE[sampler].diffusers
    if name == "DPMSolverSDEScheduler":
        # Noise comes from the tests, so that what it imports for its own is not needed.
        sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))
        return importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde").__dict__[
            name
        ]
    return None if name is None else getattr(diffusers, name)


def takes(sampler: str, name: str) -> bool:
    """True where the class of a sampler takes an argument."""
    return name in inspect.signature(peer_class(sampler).__init__).parameters


def has(sampler: str, schedule: str) -> bool:
    """True where diffusers has this schedule for a sampler."""
    taken = inspect.signature(peer_class(sampler).__init__).parameters
    read = sampler != "lcm" or schedule == "default"  # it takes a spacing, and leaves it unread
    return read and SCHEDULES[schedule].keys() <= taken.keys()


def scheduler(sampler: str, *, schedule: str = "default", **more: Any) -> Any:
    """The diffusers scheduler that a sampler's name stands for. more: arguments besides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = {**PUBLISHED, **EXTRA.get(sampler, {}), **SCHEDULES[schedule], **more}
        taken = inspect.signature(peer_class(sampler).__init__).parameters
        return peer_class(sampler)(**{k: v for k, v in arguments.items() if k in taken})


def run(
    sampler: str,
    steps: int,
    model: Model,
    noise: Tensor,
    generator: torch.Generator,
    *,
    schedule: str = "default",
    eta: float = 0.0,
    start: int | None = None,
    init: Tensor | None = None,
    **more: Any,
) -> Tensor:
    """Final latents of diffusers' own loop. noise, init: (1, 4, h, w).

    generator: of the noise of steps, as our images draw it: one draw an evaluation that has some.
    more: arguments of the scheduler.

    start: the grid point at which `init` enters, as diffusers' img2img pipeline slices it.
    """
    peer = scheduler(sampler, schedule=schedule, **more)
    if more.get("rescale_betas_zero_snr") and not peer.alphas_cumprod[-1]:
        peer.alphas_cumprod[-1] = 2.0**-24  # as its other classes have it; DDIM and DDPM have 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer.set_timesteps(steps)
    timesteps = peer.timesteps
    if init is None:
        x = noise * peer.init_noise_sigma
    else:
        timesteps = enter_at(peer, sampler, start)
        x = peer.add_noise(init, noise, timesteps[:1])
        if sampler == "sa_solver":
            # Its own takes the noise of the whole timestep, its steps that of the exact one.
            alpha = 1 / (1 + peer.sigmas[start] ** 2)
            x = alpha.sqrt() * init + (1 - alpha).sqrt() * noise
    if sampler == "dpmpp_sde":
        peer.noise_sampler = Brownian(generator, noise.shape)
    module = sys.modules[type(peer).__module__]
    with mock.patch.object(module, "randn_tensor", drawn, create=True):
        return loop(peer, sampler, model, x, timesteps, generator, eta)


def drawn(shape, generator=None, dtype=torch.float32, **_: Any) -> Tensor:
    """Noise as for float32, also where the peer computes in float64."""
    return torch.randn(shape, generator=generator).to(dtype)


def loop(peer, sampler, model, x, timesteps, generator, eta) -> Tensor:
    taken = inspect.signature(peer.step).parameters
    for t in timesteps:
        eps = model(peer.scale_model_input(x, t), float(t))
        more = {"eta": eta} if "eta" in taken else {}
        if "use_clipped_model_output" in taken:
            more["use_clipped_model_output"] = True  # else DDIM steps on with noise of another x_0
        if "generator" in taken:
            # SA-Solver draws in every step, also where it has no use for noise.
            unused = sampler == "sa_solver" and not peer.tau_func(t)
            more["generator"] = generator_for(0) if unused else generator
        x = peer.step(eps, t, x, **more).prev_sample
    return x


class Brownian:
    """Noise of DPM++ SDE: shares of one Brownian motion over σ, each scaled to variance 1."""

    def __init__(self, generator: torch.Generator, shape: torch.Size) -> None:
        self.generator, self.shape = generator, shape
        self.half: tuple[float, float, Tensor] | None = None  # of a step: from, to, noise

    def __call__(self, start: float, end: float) -> Tensor:
        own = torch.randn(self.shape, generator=self.generator)
        start, end = float(start), float(end)
        if self.half is None:
            self.half = start, end, own
            return own
        begin, middle, first = self.half
        self.half = None
        assert start == begin
        both = (begin - middle) ** 0.5 * first + (middle - end) ** 0.5 * own
        return both / (begin - end) ** 0.5


def enter_at(peer: Any, sampler: str, start: int) -> Tensor:
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
