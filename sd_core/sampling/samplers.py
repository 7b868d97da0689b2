"""Samplers by name: the table of steps of each; `sd_core.sampler_table` says where it is made.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from sd_core.sampler_table import SAMPLER_TABLE, SAMPLERS, SCHEDULES
from sd_core.sampling.grids import grid_of
from sd_core.sampling.step_table import StepTable
from sd_core.spec import PREDICTIONS, STRENGTH_RULES, Sampling

WEBUI_MOST_STRENGTH = 0.999
"""Strength that AUTOMATIC1111's web UI counts steps with, at most."""

MOST_NUMBER = 500.0
"""Coefficients above cancel each other to less than four digits in float32."""


@lru_cache(maxsize=1024)
def step_table(
    sampler: str = SAMPLERS[0],
    steps: int = 50,
    *,
    strength: float | None = None,
    strength_rule: str = STRENGTH_RULES[0],
    eta: float = 0.0,
    karras: bool = False,
    schedule: str = SCHEDULES[0],
    prediction: str = PREDICTIONS[0],
    zero_snr: bool = False,
) -> StepTable:
    """The table of a sampler by name.

    strength: None starts from noise. Otherwise the latent of an init image enters at its
        `start_point`, noised to `alphas[0]`; the table is that of the remaining grid, so multistep
        samplers start there without a history, on the timesteps at which the latent really is.
        (diffusers' PLMS and LMS do not: from the third evaluation on its PNDM scheduler asks the
        model one timestep too far, and its LMS uses fourth-order weights before it has four
        outputs.)
    eta, karras, schedule: see `sd_core.spec.Sampling`.
    prediction, zero_snr: of the model, see `sd_core.spec.ModelSpec`.
    Raises ValueError for an unknown sampler or a value out of range.
    """
    checked = Sampling(
        sampler=sampler,
        steps=steps,
        eta=eta,
        karras=karras,
        schedule=schedule,
        strength=1.0 if strength is None else strength,
        strength_rule=strength_rule,
    )
    grid = grid_of(sampler, steps, checked.spacing, zero_snr=zero_snr)
    grid = grid.after(start_point(steps, strength, strength_rule))
    row = SAMPLER_TABLE[sampler]
    module = import_module(f"sd_core.sampling.{row.module}")
    make: Callable[..., StepTable] = getattr(module, sampler)
    table = make(grid, eta) if row.eta else make(grid)
    if zero_snr:
        table = table.without_signal()
    if prediction == "v":
        table = table.for_velocity()
        if zero_snr and np.abs(table.numbers).max(initial=0) > MOST_NUMBER:
            raise ValueError(
                f"sampler {sampler} loses its numbers where the first timestep has no signal, as "
                f"with this model and steps {steps}; take euler, dpmpp_2m or another with one "
                "evaluation a step, or schedule leading"
            )
    return table


def start_point(steps: int, strength: float | None, rule: str = STRENGTH_RULES[0]) -> int:
    """Grid point at which an init image of this strength enters: 0 is pure noise, `steps` none.

    strength: None without an init image.
    rule: "diffusers" leaves int(steps·strength) points; "a1111", as that web UI, one more, with a
        strength of at most 0.999.
    """
    if strength is None:
        return 0
    if rule == "a1111":
        return steps - 1 - int(steps * min(strength, WEBUI_MOST_STRENGTH))
    return steps - min(int(steps * strength), steps)


def guided_rows(
    sampling: Sampling, table: StepTable, strength: float | None = None
) -> NDArray[np.bool_]:
    """(N,) true for rows of a table within the guided part of the steps, beyond which an image
    takes one row of the batch (Kynkäänniemi et al. 2024, by shares of the steps).

    table: of the sampling. strength: None without an init image.
    """
    left_out = start_point(sampling.steps, strength, sampling.strength_rule)
    shares = (table.steps - 1 + left_out) / sampling.steps
    return (sampling.guidance_from <= shares) & (shares < sampling.guidance_to)


def rows(sampling: Sampling, strength: float | None = None) -> int:
    """Batch rows of a whole trajectory with one prompt: one an evaluation, and where it is guided
    one for each kind of guidance.
    """
    table = step_table(
        sampling.sampler,
        sampling.steps,
        strength=strength,
        strength_rule=sampling.strength_rule,
        karras=sampling.karras,
        schedule=sampling.schedule,
    )
    guided = int(guided_rows(sampling, table, strength).sum())
    return len(table) + guided * guiding_rows(sampling)


def guiding_rows(sampling: Sampling) -> int:
    """Rows of a guided evaluation besides the prompt's own."""
    return int(sampling.guidance != 1.0) + int(sampling.pag_scale > 0)


def evaluations(
    sampler: str, steps: int, strength: float | None = None, rule: str = STRENGTH_RULES[0]
) -> int:
    """Model evaluations of a whole trajectory; strength is None without an init image."""
    points = steps - start_point(steps, strength, rule)
    return SAMPLER_TABLE[sampler].evaluations(points) if points else 0
