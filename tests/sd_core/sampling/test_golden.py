"""Latents that older versions made, to the bit.

`golden.json` was written by the code of the day when this test was made, and is only added to. The
model here is made of sums and of products with powers of two, which every machine rounds alike; so
a sum differs only where a table of steps, the noise or the arithmetic of a step does.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sd_core.sampling.noise import draw_noise, generator_for
from sd_core.sampling.samplers import step_table
from sd_core.sampling.slots import Slots
from sd_core.sampling.trajectory import Trajectory, from_latents, from_noise

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
SHAPE = (8, 12)


def model(x: Tensor, t: float, prompt: int) -> Tensor:
    """Stands in for the UNet: depends on every input."""
    mixed = 0.5 * x + 0.25 * x.roll(1, dims=-1) - 0.125 * x.roll(1, dims=-3)
    return (mixed + 0.25 * prompt + t / 1024).clamp(-3, 3)


def latents(task: dict[str, Any]) -> Tensor:
    """Final latents of settings. A task with `strength` begins with an image."""
    guidance = task.pop("guidance")
    table = step_table(**task)
    generator = generator_for(2**63 + 5)
    if "strength" in task:
        clean, noise = (draw_noise(generator, (4, *SHAPE)) for _ in range(2))
        start = from_latents(table, clean, noise)
    else:
        start = from_noise(table, draw_noise(generator, (4, *SHAPE)))
    image = Trajectory(table, start, generator, guidance)
    slots = Slots(1, SHAPE, start.device)
    slots.put(0, image)
    while not image.done:
        extent = slots.stage()
        x, t = slots.latents, image.timestep
        slots.step(model(x, t, 0), model(x, t, 1), extent)
        slots.stepped()
    slots.take(0)
    return image.latents


def digest(task: dict[str, Any]) -> str:
    return hashlib.sha256(latents(dict(task)).numpy().astype("<f4").tobytes()).hexdigest()


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: json.dumps(golden["task"]))
def test_latents_are_those_of_older_versions(golden):
    assert torch.isfinite(latents(dict(golden["task"]))).all()
    assert digest(golden["task"]) == golden["latents"]
