"""Our tables against diffusers' schedulers, on a model that is cheap and far from linear."""

from __future__ import annotations

from collections.abc import Sequence

import diffusers
import numpy as np
import pytest
import torch

from sd_core.sampler_table import SAMPLER_TABLE, SAMPLERS
from sd_core.sampling.grids import grid_of
from sd_core.sampling.noise import draw_noise, generator_for
from sd_core.sampling.predictor_corrector import unipc_bh1
from sd_core.sampling.samplers import start_point, step_table
from sd_core.sampling.schedule import alphas_cumprod, timestep_of
from sd_core.sampling.slots import Slots
from sd_core.sampling.trajectory import Trajectory, from_latents, from_noise
from tests.parity import noise_levels, schedulers

SHAPE = (6, 5)


def model(x: torch.Tensor, t: float) -> torch.Tensor:
    """Stands in for a guided UNet: depends on every input, bounded like noise."""
    mixed = 0.6 * x + 0.4 * x.roll(1, dims=-1) - 0.2 * x.roll(1, dims=-3)
    return torch.tanh(mixed * (0.7 + t / 1500)) + 0.1 * torch.sin(x * 3 + t / 90)


def ours(table, latents: torch.Tensor, generator: torch.Generator, seen=model) -> torch.Tensor:
    trajectory = Trajectory(table, latents, generator)
    slots = Slots(1, SHAPE, latents.device)
    slots.put(0, trajectory)
    while not trajectory.done:
        advance(slots, seen(slots.latents, trajectory.timestep))
    return trajectory.latents


def advance(slots: Slots, eps: torch.Tensor) -> None:
    extent = slots.stage()
    slots.step(eps, eps.clone(), extent)
    slots.stepped()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


PEERS = [name for name in SAMPLERS if schedulers.peer_class(name) is not None]

WRONG = {("ddim", "linspace"), ("plms", "linspace")}
"""In diffusers these step to a timestep, and ask the model at another one: see below."""


def blind(x: torch.Tensor, t: float) -> torch.Tensor:
    """A model that does not see the timestep."""
    return model(x, 400.0)


def seen_by(sampler: str, schedule: str):
    """The model to compare with: a blind one where diffusers rounds timesteps that are not whole.

    It cuts the fractions off exponential ones of DPM++, UniPC, DEIS and SA-Solver, where ours are
    the nearest; and it rounds Karras ones of DPM2, where ours have the fraction.
    """
    cut = schedule == "exponential" and SAMPLER_TABLE[sampler].grid == "dpm"
    return blind if cut or (schedule == "karras" and sampler.startswith("dpm2")) else model


CASES = [
    (name, steps, schedule, eta)
    for name in PEERS
    for schedule in schedulers.SCHEDULES
    if name != "unipc_bh1"  # see below
    and schedule in SAMPLER_TABLE[name].schedules
    and schedulers.has(name, schedule)
    and (name, schedule) not in WRONG
    for steps in ((2, 3, 4, 5, 8, 20, 30, 50) if schedule == "default" else (4, 8, 20))
    for eta in ((0.0, 0.3, 1.0) if SAMPLER_TABLE[name].eta else (0.0,))
]


@pytest.mark.parametrize(("sampler", "steps", "schedule", "eta"), CASES)
def test_txt2img_latents_agree(sampler, steps, schedule, eta):
    seen = seen_by(sampler, schedule)
    generator = generator_for(7)
    noise = draw_noise(generator_for(7), (4, *SHAPE))
    table = step_table(sampler, steps, schedule=schedule, eta=eta)
    mine = ours(table, from_noise(table, draw_noise(generator, (4, *SHAPE))), generator, seen)

    peer_generator = generator_for(7)
    draw_noise(peer_generator, (4, *SHAPE))
    peer = schedulers.run(
        sampler, steps, seen, noise[None], peer_generator, schedule=schedule, eta=eta
    )
    assert relative(mine, peer[0]) < 1e-4


IMG2IMG = [
    (name, schedule, steps)
    for name, steps, schedule, eta in CASES
    if steps in (4, 8, 20) and not eta
]
STRENGTHS = (0.3, 0.58, 0.75, 1.0)


@pytest.mark.parametrize(("sampler", "schedule", "steps"), IMG2IMG)
def test_img2img_latents_agree(sampler, schedule, steps):
    check_strengths(sampler, schedule, steps, STRENGTHS if steps < 20 else (0.58,))


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "schedule", "steps"), [one for one in IMG2IMG if one[2] == 20])
def test_img2img_latents_of_many_steps_agree(sampler, schedule, steps):
    check_strengths(sampler, schedule, steps, STRENGTHS)


def check_strengths(sampler: str, schedule: str, steps: int, strengths: Sequence[float]) -> None:
    for strength in strengths:
        points = steps - start_point(steps, strength)
        if points and not (sampler == "plms" and points == 1):  # no second step for PNDM to repeat
            check_img2img(sampler, schedule, steps, strength)


def check_img2img(sampler: str, schedule: str, steps: int, strength: float) -> None:
    seen = seen_by(sampler, schedule)
    clean = draw_noise(generator_for(3), (4, *SHAPE)) * 0.8
    generator = generator_for(11)
    noise = draw_noise(generator, (4, *SHAPE))
    table = step_table(sampler, steps, schedule=schedule, strength=strength)
    mine = ours(table, from_latents(table, clean, noise), generator, seen)

    peer_generator = generator_for(11)
    draw_noise(peer_generator, (4, *SHAPE))
    peer = schedulers.run(
        sampler,
        steps,
        seen,
        noise[None],
        peer_generator,
        schedule=schedule,
        start=start_point(steps, strength),
        init=clean[None],
    )
    assert relative(mine, peer[0]) < 1e-4


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m", "unipc", "deis", "lcm"])
def test_thresholding_agrees(sampler):
    """Cuts off the clean latent in every step; diffusers has no guidance before."""
    steps, share = 8, 0.9
    noise = draw_noise(generator_for(7), (4, *SHAPE))
    for prediction, seen in (("epsilon", model), ("v", velocity)):
        table = step_table(sampler, steps, prediction=prediction)
        generator, peer_generator = generator_for(5), generator_for(5)
        trajectory = Trajectory(table, from_noise(table, noise), generator, 1.0)
        slots = Slots(1, SHAPE, noise.device)
        slots.put(0, trajectory)
        while not trajectory.done:
            extent, eps = slots.stage(), seen(slots.latents, trajectory.timestep)
            slots.step(eps, eps.clone(), extent, {0: trajectory.guide(0.0, share)})
            slots.stepped()
        peer = schedulers.run(
            sampler,
            steps,
            seen,
            noise[None],
            peer_generator,
            thresholding=True,
            dynamic_thresholding_ratio=share,
            sample_max_value=1e6,
            prediction_type="epsilon" if prediction == "epsilon" else "v_prediction",
        )
        assert relative(trajectory.latents, peer[0]) < 1e-5


def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
    """Stands in for a UNet that predicts the velocity."""
    return 0.8 * model(x, t) - 0.3 * x


@pytest.mark.parametrize("steps", [4, 8, 20])
@pytest.mark.parametrize("sampler", [n for n in PEERS if n not in ("unipc_bh1", "plms")])
def test_velocity_agrees(sampler, steps):
    """PNDM adds up velocities of several timesteps; ours adds up noise, as PLMS of Stable Diffusion
    2 does.
    """
    check_velocity(sampler, steps, "default", zero_snr=False)


ZERO_SNR = [
    (sampler, schedule)
    for sampler in PEERS
    if schedulers.takes(sampler, "rescale_betas_zero_snr") and sampler != "unipc_bh1"
    for schedule in ("trailing", "karras", "default")
    if schedule in SAMPLER_TABLE[sampler].schedules and schedulers.has(sampler, schedule)
]


@pytest.mark.parametrize("steps", [4, 8, 20])
@pytest.mark.parametrize(("sampler", "schedule"), ZERO_SNR)
def test_velocity_agrees_where_the_first_timestep_has_no_signal(sampler, schedule, steps):
    check_velocity(sampler, steps, schedule, zero_snr=True)


def check_velocity(sampler: str, steps: int, schedule: str, *, zero_snr: bool) -> None:
    noise = draw_noise(generator_for(7), (4, *SHAPE))
    spec = {"prediction": "v", "zero_snr": zero_snr}
    table = step_table(sampler, steps, schedule=schedule, **spec)
    generator = generator_for(7)
    draw_noise(generator, (4, *SHAPE))
    mine = ours(table, from_noise(table, noise), generator, velocity)
    peer_generator = generator_for(7)
    draw_noise(peer_generator, (4, *SHAPE))
    # In float64: diffusers' sums cancel where the noise level is in the thousands.
    peer = schedulers.run(
        sampler,
        steps,
        velocity,
        noise[None].double(),
        peer_generator,
        schedule=schedule,
        prediction_type="v_prediction",
        **({"rescale_betas_zero_snr": True} if zero_snr else {}),
    )
    assert relative(mine, peer[0].float()) < 1e-4


@pytest.mark.parametrize("schedule", ["default", "karras", "exponential", "beta", "ays"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 20])
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if hasattr(noise_levels, name)])
def test_samplers_agree_with_their_authors_programs(sampler, steps, schedule):
    """... where diffusers has none, or a wrong one."""
    generator = generator_for(7)
    table = step_table(sampler, steps, schedule=schedule)
    start = from_noise(table, draw_noise(generator, (4, *SHAPE)))
    mine = ours(table, start, generator)

    grid = grid_of(sampler, steps, schedule)
    told = dict(zip(grid.sigmas.tolist(), grid.timesteps.tolist(), strict=True))

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        t = told.get(sigma, float(timestep_of(np.array(sigma), alphas_cumprod())))
        return x - sigma * model(x / (1 + sigma**2) ** 0.5, t)

    peer_generator = generator_for(7)
    draw_noise(peer_generator, (4, *SHAPE))

    def noise() -> torch.Tensor:
        return draw_noise(peer_generator, (4, *SHAPE))

    sigmas = [*grid.sigmas.tolist(), 0.0]
    first = start * (1 + sigmas[0] ** 2) ** 0.5
    peer = getattr(noise_levels, sampler)(first, sigmas, denoise, noise)
    assert relative(mine, peer) < 1e-4


def test_third_order_sde_of_diffusers_does_not_settle():
    """The weight of the oldest clean latent in a step must go to 0 with the step, as that only
    corrects for how the newer ones bend: its integral over the step is of third order.

    In diffusers' `sde-dpmsolver++` of order 3 it goes to half of the latent's scale: a 1/2 is
    taken off ((1 - e^-2h - 2h)/(2h)² - 1/2, which tends to -1) where it is to be added.
    """
    for steps, most in ((50, 0.04), (500, 0.004)):
        middle = steps // 2
        table = step_table("dpmpp_3m_sde", steps)
        assert abs(table.B[middle, 2]) < most
        peer = diffusers.DPMSolverMultistepScheduler(
            **schedulers.PUBLISHED, algorithm_type="sde-dpmsolver++", solver_order=3
        )
        peer.set_timesteps(steps)
        peer._step_index = middle
        zero, one = torch.zeros(1, 4, *SHAPE), torch.ones(1, 4, *SHAPE)
        moved = peer.multistep_dpm_solver_third_order_update(
            [one, zero, zero], sample=zero, noise=zero
        )
        scale = float(table.alphas[middle + 1]) ** 0.5
        assert float(moved[0, 0, 0, 0]) / scale < -0.4


@pytest.mark.parametrize("schedule", ["default", "leading", "trailing"])
@pytest.mark.parametrize("steps", [2, 4, 8, 20])
def test_unipc_bh1_agrees_where_diffusers_has_a_number(steps, schedule):
    """Its last step to no noise is infinity times nothing there; so both end at timestep 0 here."""
    table = unipc_bh1(grid_of("deis", steps, schedule))
    noise = draw_noise(generator_for(7), (4, *SHAPE))
    mine = ours(table, from_noise(table, noise), generator_for(7))

    peer = schedulers.scheduler("unipc_bh1", schedule=schedule, final_sigmas_type="sigma_min")
    peer.set_timesteps(steps)
    x = noise[None]
    for t in peer.timesteps:
        x = peer.step(model(x, float(t)), t, x).prev_sample
    assert relative(mine, x[0]) < 1e-4


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


def test_linspace_steps_lead_to_where_the_model_is_asked_next():
    """... where diffusers' DDIM and PNDM go 1000 // steps on, whatever the next timestep is."""
    steps = 20
    noise = draw_noise(generator_for(5), (4, *SHAPE))
    for sampler in ("ddim", "plms"):
        table = step_table(sampler, steps, schedule="linspace")
        again = np.flatnonzero(np.diff(table.steps, prepend=0) == 0)
        told = np.delete(table.t, again)
        np.testing.assert_allclose(np.diff(told), -999 / 19, atol=1.0)
        np.testing.assert_allclose(table.alphas[:-1], alphas_cumprod()[table.t.astype(int)])

    peer = schedulers.scheduler("ddim", schedule="linspace")
    peer.set_timesteps(steps)

    def peer_once(x, t):
        return peer.step(noise[None], t, x).prev_sample

    start = peer.add_noise(torch.zeros_like(noise)[None], noise[None], peer.timesteps[:1])
    told, real = told_and_real(peer_once, peer.timesteps, start)
    assert real[1] == pytest.approx(alphas_cumprod()[999 - 50], abs=1e-5)
    assert (np.abs(told[1:] - real[1:]) > 2e-4).all()
