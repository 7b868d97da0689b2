"""Sampling a batch of latents in one call, for use as a library and in tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sd_core.model.unet import stack_contexts
from sd_core.sampler_table import SCHEDULES
from sd_core.sampling.noise import Generator, generator_for
from sd_core.sampling.samplers import step_table
from sd_core.sampling.slots import Slots
from sd_core.sampling.trajectory import Trajectory

if TYPE_CHECKING:
    from sd_core.model.diffusion import LatentDiffusion

OnStep = Callable[[int, int], None]


def sample_latents(
    model: LatentDiffusion,
    x_T: Tensor,
    cond: Tensor,
    uncond: Tensor | None,
    *,
    sampler: str = "plms",
    steps: int = 50,
    guidance: float = 7.5,
    eta: float = 0.0,
    karras: bool = False,
    schedule: str = SCHEDULES[0],
    generators: Sequence[Generator] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Clean latents (B, 4, h, w) float32 from unit noise, all images by the same sampler.

    x_T: (B, 4, h, w) unit normal noise. cond: (B, 77, d) encoded prompts; uncond: the same of the
    negative prompts, or None with guidance 1.0 or a model that is told it, which costs half the
    rows. generators: one an image, for the samplers that draw fresh noise; seeded by position where
    not given. on_step is called after each evaluation with (done, all).
    Raises ValueError for settings out of range and shapes that do not fit.
    """
    if len(cond) != len(x_T):
        raise ValueError(f"{len(x_T)} latents but {len(cond)} encoded prompts")
    guided = guidance != 1.0 and not model.told_guidance
    if guided and uncond is None:
        raise ValueError(f"guidance {guidance} needs uncond; only 1.0 goes without")
    if generators is None:
        generators = [generator_for(n) for n in range(len(x_T))]
    table = step_table(
        sampler,
        steps,
        eta=eta,
        karras=karras,
        schedule=schedule,
        prediction=model.spec.prediction,
        zero_snr=model.spec.zero_snr,
    )
    slots = Slots(len(x_T), (x_T.shape[-2], x_T.shape[-1]), model.device)
    for slot, (x, generator) in enumerate(zip(x_T.float(), generators, strict=True)):
        begun = x * table.initial_noise
        slots.put(slot, Trajectory(table, begun, generator, guidance if guided else 1.0))
    prompts = torch.cat([uncond, cond]) if guided and uncond is not None else cond
    # One by one, and all timesteps at once: so the engine does it, and both give the same bits.
    projected = [model.project_context(prompt[None]) for prompt in prompts]
    context = stack_contexts([[(k[0], v[0]) for k, v in layers] for layers in projected])
    times = model.embed_timesteps(torch.tensor(table.t, dtype=torch.float32), guidance)
    for done, time in enumerate(times, start=1):
        extent = slots.stage()
        rows = torch.cat([slots.latents, slots.latents]) if guided else slots.latents
        eps = model.denoise(rows, time.expand(len(rows), -1), context)
        without, given = eps.chunk(2) if guided else (eps, eps.clone())
        slots.step(without, given, extent)
        slots.stepped()
        if on_step is not None:
            on_step(done, len(table))
    return slots.latents
