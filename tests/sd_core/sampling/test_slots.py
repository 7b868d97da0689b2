"""Slots: images of all samplers move together, each as if it were alone."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from sd_core.sampler_table import SAMPLER_TABLE, SAMPLERS
from sd_core.sampling.noise import draw_noise, generator_for
from sd_core.sampling.samplers import step_table
from sd_core.sampling.slots import Extent, Slots
from sd_core.sampling.step_table import MOST_HISTORY, MOST_NOISE, StepTable
from sd_core.sampling.trajectory import Inpainting, Trajectory, from_latents, from_noise

SHAPE = (6, 5)
CPU = torch.device("cpu")


def model(x: Tensor, table: StepTable, row: int, prompt: int) -> Tensor:
    """Stands in for the UNet: depends on every input, bounded like noise."""
    return torch.tanh(0.6 * x + 0.4 * x.roll(1, dims=-1) + 0.1 * prompt - float(table.t[row]) / 1e4)


def trajectory(n: int, table: StepTable, *, masked: bool = False) -> Trajectory:
    generator = generator_for(n)
    if not masked:
        return Trajectory(
            table, from_noise(table, draw_noise(generator, (4, *SHAPE))), generator, 1.0 + n
        )
    clean, noise = (draw_noise(generator, (4, *SHAPE)) for _ in range(2))
    mask = (draw_noise(generator, (1, *SHAPE)) > 0).float()
    latents = from_latents(table, clean, noise)
    return Trajectory(table, latents, generator, 1.0 + n, Inpainting(clean, noise, mask))


def by_hand(image: Trajectory) -> list[Tensor]:
    """Latents after each row, straight from the definition of a table."""
    table, x = image.table, image.latents
    generator = torch.Generator().manual_seed(0)
    generator.set_state(image.generator.get_state())
    outputs: list[Tensor] = []
    found = []
    noise = torch.zeros_like(x)
    for i in range(len(table)):
        without, given = (model(x, table, i, prompt) for prompt in (0, 1))
        eps = without + image.guidance * (given - without)
        outputs.insert(0, float(table.p[i]) * x + float(table.q[i]) * eps)
        x = float(table.A[i]) * x
        for weight, output in zip(table.B[i], outputs, strict=False):
            x = x + float(weight) * output
        noise, before = torch.zeros_like(x), noise
        if table.C[i, 0]:
            noise = draw_noise(generator, (4, *SHAPE))
            x = x + float(table.C[i, 0]) * noise
        if table.reads_noise_before(i):
            x = x + float(table.C[i, 1]) * before
        if (known := image.inpainting) is not None:
            alpha = 1.0 if i + 1 == len(table) else float(table.alphas[i + 1])
            back = alpha**0.5 * known.known + (1 - alpha) ** 0.5 * known.noise
            x = known.mask * x + (1 - known.mask) * back
        found.append(x)
    return found


def tick(slots: Slots, inside: dict[int, Trajectory], extent: Extent | None = None) -> None:
    staged = slots.stage()
    without, given = (torch.zeros_like(slots.latents) for _ in range(2))
    for slot, image in inside.items():
        without[slot], given[slot] = (
            model(slots.latents[slot], image.table, image.position, prompt) for prompt in (0, 1)
        )
    extent = staged if extent is None else extent
    slots.step(without[: extent.slots], given[: extent.slots], extent)
    slots.stepped()


TABLES = [
    *(step_table(name, 7) for name in SAMPLERS),
    *(step_table(name, 5, schedule=row.schedules[-1]) for name, row in SAMPLER_TABLE.items()),
    step_table("ddim", 6, eta=0.7),
    step_table("euler_a", 9, strength=0.5),
]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("masked", [False, True])
def test_every_row_is_what_its_table_says(table, masked):
    image = trajectory(3, table, masked=masked)
    wanted = by_hand(image)
    slots = Slots(2, SHAPE, CPU)
    slots.put(1, image)
    for latents in wanted:
        tick(slots, {1: image})
        assert torch.equal(image.latents, latents)
    assert image.done


@pytest.mark.parametrize("whole", [False, True], ids=["as much as is staged", "all"])
@pytest.mark.parametrize("seed", range(4))
def test_images_come_go_and_come_again_in_any_slot(seed, whole):
    """With a step of all slots and the longest history too, as a captured one has it."""
    rng = random.Random(seed)
    waiting = [trajectory(n, table, masked=n % 3 == 0) for n, table in enumerate(TABLES)]
    wanted = {id(image): by_hand(image) for image in waiting}
    everyone = list(waiting)
    slots, inside = Slots(5, SHAPE, CPU), {}
    while waiting or inside:
        for slot, image in list(inside.items()):
            if image.done or rng.random() < 0.15:
                slots.take(slot)
                del inside[slot]
                assert not slots.latents[slot].any()
                if not image.done:
                    waiting.append(image)
        for slot in set(range(5)) - inside.keys():
            if waiting and rng.random() < 0.7:
                inside[slot] = waiting.pop(rng.randrange(len(waiting)))
                slots.put(slot, inside[slot])
        if inside:
            tick(slots, inside, Extent(5, MOST_HISTORY, MOST_NOISE, True) if whole else None)
        for image in inside.values():
            assert torch.equal(image.latents, wanted[id(image)][image.position - 1])
    assert all(torch.equal(image.latents, wanted[id(image)][-1]) for image in everyone)


def test_noise_of_a_step_that_was_not_taken_is_drawn_again():
    image = trajectory(1, step_table("euler_a", 5))
    wanted = by_hand(image)
    slots = Slots(1, SHAPE, CPU)
    slots.put(0, image)
    for latents in wanted:
        slots.stage()
        slots.withdraw()
        tick(slots, {0: image})
        assert torch.equal(image.latents, latents)


def test_what_was_not_finite_is_gone_with_its_image():
    slots = Slots(2, SHAPE, CPU)
    bad = trajectory(0, step_table("lms", 9), masked=True)
    bad.inpainting.known.fill_(float("inf"))
    slots.put(0, bad)
    for _ in range(4):
        slots.stage()
        slots.step(*(torch.full((1, 4, *SHAPE), float("nan")) for _ in range(2)), slots.stage())
        slots.stepped()
    slots.take(0)
    good = trajectory(1, step_table("lms", 9))
    wanted = by_hand(good)
    slots.put(0, good)
    for _ in wanted:
        tick(slots, {0: good}, Extent(2, MOST_HISTORY, MOST_NOISE, True))
    assert torch.equal(good.latents, wanted[-1])


@pytest.mark.parametrize("flaw", ["latents", "known", "noise", "mask"])
def test_a_tensor_of_another_shape_is_refused_and_nothing_changes(flaw):
    slots = Slots(1, SHAPE, CPU)
    image = trajectory(3, step_table("plms", 5), masked=True)
    holder = image if flaw == "latents" else image.inpainting
    setattr(holder, flaw, getattr(holder, flaw)[:, :-1])
    with pytest.raises(ValueError, match=r"expected torch\.float32"):
        slots.put(0, image)
    assert not slots.latents.any()
    other = trajectory(1, step_table("plms", 5))
    wanted = by_hand(other)
    slots.put(0, other)
    for _ in wanted:
        tick(slots, {0: other})
    assert torch.equal(other.latents, wanted[-1])
