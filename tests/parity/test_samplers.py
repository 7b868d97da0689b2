"""Our tables against diffusers' schedulers, on a model that is cheap and far from linear."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sd_core.sampling.noise import draw_noise, generator_for
from sd_core.sampling.samplers import start_point, step_table
from sd_core.sampling.schedule import alphas_cumprod
from sd_core.sampling.slots import Slots
from sd_core.sampling.trajectory import Trajectory, from_latents, from_noise
from sd_core.spec import KARRAS_SAMPLERS, SAMPLERS
from tests.parity import schedulers

SHAPE = (6, 5)


def model(x: torch.Tensor, t: float) -> torch.Tensor:
    """Stands in for a guided UNet: depends on every input, bounded like noise."""
    mixed = 0.6 * x + 0.4 * x.roll(1, dims=-1) - 0.2 * x.roll(1, dims=-3)
    return torch.tanh(mixed * (0.7 + t / 1500)) + 0.1 * torch.sin(x * 3 + t / 90)


def ours(table, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    trajectory = Trajectory(table, latents, generator)
    slots = Slots(1, SHAPE, latents.device)
    slots.put(0, trajectory)
    while not trajectory.done:
        advance(slots, model(slots.latents, trajectory.timestep))
    return trajectory.latents


def advance(slots: Slots, eps: torch.Tensor) -> None:
    extent = slots.stage()
    slots.step(eps, eps.clone(), extent)
    slots.stepped()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


CASES = [
    *((name, steps, False, 0.0) for name in SAMPLERS for steps in (2, 3, 5, 20, 50, 30)),
    *((name, steps, True, 0.0) for name in KARRAS_SAMPLERS for steps in (2, 10, 25)),
    ("ddim", 20, False, 0.5),
    ("ddim", 20, False, 1.0),
]


@pytest.mark.parametrize(("sampler", "steps", "karras", "eta"), CASES)
def test_txt2img_latents_agree(sampler, steps, karras, eta):
    generator = generator_for(7)
    noise = draw_noise(generator_for(7), (4, *SHAPE))
    table = step_table(sampler, steps, karras=karras, eta=eta)
    mine = ours(table, from_noise(table, generator, SHAPE), generator)

    peer_generator = generator_for(7)
    draw_noise(peer_generator, (4, *SHAPE))
    peer = schedulers.run(
        sampler, steps, model, noise[None], peer_generator, karras=karras, eta=eta
    )
    assert relative(mine, peer[0]) < 1e-4


@pytest.mark.parametrize("strength", [0.3, 0.58, 0.75, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_img2img_latents_agree(sampler, strength):
    steps = 20
    clean = draw_noise(generator_for(3), (4, *SHAPE)) * 0.8
    generator = generator_for(11)
    noise = draw_noise(generator, (4, *SHAPE))
    table = step_table(sampler, steps, strength=strength)
    mine = ours(table, from_latents(table, clean, noise), generator)

    peer_generator = generator_for(11)
    draw_noise(peer_generator, (4, *SHAPE))
    peer = schedulers.run(
        sampler,
        steps,
        model,
        noise[None],
        peer_generator,
        start=start_point(steps, strength),
        init=clean[None],
    )
    assert relative(mine, peer[0]) < 1e-4


def told_and_real(advance_one, timesteps, latents):
    """For a model that always sees through to the noise: the cumulative alphas it is told, by
    its timestep, and those that its latents really have. (1 - alpha = |x|² / |noise|².)"""
    alphas = alphas_cumprod()
    told, real = [], []
    noise_power = float(latents.square().sum()) / (1 - alphas[int(timesteps[0])])
    for t in timesteps:
        told.append(alphas[int(t)])
        real.append(1 - float(latents.square().sum()) / noise_power)
        latents = advance_one(latents, t)
    return np.array(told), np.array(real)


def test_plms_img2img_asks_the_model_at_the_timestep_its_latents_have():
    """... where diffusers' pipeline, from the third evaluation on, is one grid point ahead.

    That is why PLMS img2img here differs from diffusers': the published table repeats its second
    timestep, and the pipeline's slice starts past the repetition.
    """
    steps, stride = 20, 50
    noise = draw_noise(generator_for(5), (4, *SHAPE))
    table = step_table("plms", steps, strength=0.5)
    trajectory = Trajectory(table, from_latents(table, torch.zeros_like(noise), noise), None)
    slots = Slots(1, SHAPE, noise.device)
    slots.put(0, trajectory)

    def ours_once(_, t):
        assert t == trajectory.timestep
        advance(slots, noise[None])
        return trajectory.latents.clone()

    told, real = told_and_real(ours_once, table.t, trajectory.latents)
    np.testing.assert_allclose(told, real, atol=1e-5)

    peer = schedulers.scheduler("plms")
    peer.set_timesteps(steps)
    sliced = peer.timesteps[start_point(steps, 0.5) :]
    latents = peer.add_noise(torch.zeros_like(noise)[None], noise[None], sliced[:1])

    def peer_once(x, t):
        return peer.step(noise[None], t, x).prev_sample

    told, real = told_and_real(peer_once, sliced, latents)
    np.testing.assert_allclose(told[:2], real[:2], atol=1e-5)
    assert real[2] == pytest.approx(alphas_cumprod()[int(sliced[2]) + stride], abs=1e-5)
    assert (told[2:] - real[2:] > 5e-3).all()
