"""Any sampler, schedule, noise and guidance, suspended between any two evaluations."""

from __future__ import annotations

import hypothesis
import torch
from hypothesis import strategies as st
from torch import Tensor

from sd_core.engine.snapshot import load_trajectory, save_trajectory
from sd_core.sampler_table import SAMPLER_TABLE
from sd_core.sampling.noise import draw_noise, noise_of
from sd_core.sampling.samplers import guided_rows, step_table
from sd_core.sampling.slots import Slots
from sd_core.sampling.trajectory import Inpainting, Trajectory, from_latents, from_noise
from sd_core.setting_texts import has_momentum, projection_of
from sd_core.spec import NOISES, PREDICTIONS, Sampling

CPU = torch.device("cpu")
SHAPE = (8, 8)


@st.composite
def settings(draw) -> tuple[Sampling, str, bool]:
    """(settings, prediction, whether there is a mask)."""
    sampler = draw(st.sampled_from(sorted(SAMPLER_TABLE)))
    row = SAMPLER_TABLE[sampler]
    first = draw(st.sampled_from((0.0, 0.3)))
    sampling = Sampling(
        sampler=sampler,
        schedule=draw(st.sampled_from(row.schedules)),
        steps=draw(st.integers(1, 7)),
        eta=draw(st.sampled_from((0.0, 0.5))) if row.eta else 0.0,
        width=64,
        height=64,
        seed=draw(st.integers(0, 2**64 - 1)),
        noise=draw(st.sampled_from(NOISES)),
        variation_strength=draw(st.sampled_from((0.0, 0.2))),
        eta_noise_seed_delta=draw(st.sampled_from((0, 31337))),
        guidance=draw(st.sampled_from((1.0, 6.0))),
        guidance_from=first,
        guidance_to=draw(st.sampled_from((0.6, 1.0))),
        guidance_rescale=draw(st.sampled_from((0.0, 0.7))),
        thresholding=draw(st.sampled_from((0.0, 0.9))),
        apg=draw(st.sampled_from(("", "0 2.5 0", "0.3 0 -0.5"))),
    )
    return sampling, draw(st.sampled_from(PREDICTIONS)), draw(st.booleans())


def model(x: Tensor, t: float, prompt: int) -> Tensor:
    return torch.tanh(0.6 * x + 0.4 * x.roll(1, dims=-1) + 0.1 * prompt - t / 1e4)


def begun(sampling: Sampling, prediction: str, *, masked: bool) -> Trajectory:
    spacing = {"schedule": sampling.schedule, "karras": sampling.karras, "eta": sampling.eta}
    table = step_table(sampling.sampler, sampling.steps, prediction=prediction, **spacing)
    noise, generator = noise_of(sampling)
    image = Trajectory(table, from_noise(table, noise), generator, sampling.guidance)
    if masked:
        clean = draw_noise(generator, (4, *SHAPE))
        mask = (draw_noise(generator, (1, *SHAPE)) > 0).float()
        image.latents = from_latents(table, clean, noise)
        image.inpainting = Inpainting(clean, noise, mask)
    image.guided = guided_rows(sampling, table)
    image.projection = projection_of(sampling.apg)
    return image


def advance(image: Trajectory, sampling: Sampling) -> None:
    slots = Slots(1, SHAPE, CPU)
    slots.put(0, image)
    extent = slots.stage()
    without, given = (model(slots.latents, image.timestep, prompt) for prompt in (0, 1))
    guide = image.guide(sampling.guidance_rescale, sampling.thresholding)
    slots.step(without, given, extent, {} if guide is None else {0: guide})
    slots.stepped()
    slots.take(0)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(settings())
def test_it_goes_on_with_the_same_bits(chosen):
    sampling, prediction, masked = chosen
    alone = begun(sampling, prediction, masked=masked)
    image = begun(sampling, prediction, masked=masked)
    while not alone.done:
        advance(alone, sampling)
        state = save_trajectory(image, kind="this", exact=True)
        image, exact = load_trajectory(
            state,
            image.table,
            kind="this",
            guidance=sampling.guidance,
            shape=SHAPE,
            noise=sampling.noise,
            inpainted=masked,
            momentum=has_momentum(sampling.apg),
            device=CPU,
        )
        assert exact
        image.guided = guided_rows(sampling, image.table)
        image.projection = projection_of(sampling.apg)
        advance(image, sampling)
        assert torch.equal(image.latents, alone.latents)
