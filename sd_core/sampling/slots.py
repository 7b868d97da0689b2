"""Images of one latent shape at fixed places of the device, and the one step that moves them all.

Each image has a slot from its admission to its end: latents, past outputs and fresh noise lie
there, and every evaluation only writes a few numbers for each slot. So a step is the same few
operations whatever samplers, step counts and guidance the images have, and it can be captured as a
graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from sd_core.sampling.guidance import Guide
from sd_core.sampling.noise import Generator, fill
from sd_core.sampling.step_table import MOST_HISTORY, MOST_NOISE, NUMBERS, Number
from sd_core.sampling.trajectory import Inpainting, Trajectory
from sd_core.spec import Shape
from sd_core.transfer import Upload

_STAY = np.zeros(NUMBERS, dtype=np.float32)  # the numbers of a slot without an image
_STAY[Number.A] = 1.0


@dataclass(frozen=True)
class Extent:
    """How much of its work a step has to do, for the images that are in the slots.

    slots: the first so many may hold an image.
    history: past outputs that a table of them reads, the newest included.
    noise: draws of fresh noise that one of their rows reads, the newest included.
    inpainted: one of them has a mask.
    """

    slots: int
    history: int
    noise: int
    inpainted: bool


class Slots:
    """So many slots. latents: (count, 4, h, w) float32; those of free slots are zero.

    shape: (h, w) of the latents. An evaluation takes `stage`, the model, `step`, in this order.
    """

    def __init__(self, count: int, shape: Shape, device: torch.device) -> None:
        wide = (count, 4, *shape)
        self.latents = torch.zeros(wide, device=device)
        self._outputs = torch.zeros((MOST_HISTORY, *wide), device=device)  # newest first
        self._numbers = Upload((NUMBERS, count, 1, 1, 1), device)
        self._noise = Upload(wide, device)
        self._noise_before = torch.zeros(wide, device=device)  # that of the row before
        self._differences = torch.zeros(wide, device=device)  # of projected guidance
        self._inpainting: Inpainting | None = None  # of all slots; none until an image has one
        self._product = torch.zeros_like(self.latents)
        self._sum = torch.zeros_like(self.latents)
        self._kept = torch.zeros_like(self.latents[:, :1])
        self._inside: dict[int, Trajectory] = {}
        self._drawn: list[tuple[Generator, Tensor]] = []

    def put(self, slot: int, trajectory: Trajectory) -> None:
        """Lets an image begin, or go on, in a free slot.

        Raises `ValueError` for tensors of another shape or type, and then changes nothing.
        """
        _check("latents", trajectory.latents, self.latents[slot])
        known = trajectory.inpainting
        if known is not None:
            _check("known latents", known.known, self.latents[slot])
            _check("noise", known.noise, self.latents[slot])
            _check("mask", known.mask, self.latents[slot, :1])
            self._keep(slot, known)
        self.latents[slot].copy_(trajectory.latents)
        past = _taken(self._outputs[:-1, slot], trajectory.past)
        trajectory.latents, trajectory.past = self.latents[slot], past
        trajectory.noise_before = _taken(self._noise_before[slot], trajectory.noise_before)
        trajectory.difference = _taken(self._differences[slot], trajectory.difference)
        self._inside[slot] = trajectory

    def take(self, slot: int) -> None:
        """Frees a slot; its image keeps what it has there."""
        trajectory = self._inside.pop(slot)
        assert trajectory.past is not None
        assert trajectory.noise_before is not None
        assert trajectory.difference is not None
        reads = trajectory.table.reads_noise_before(trajectory.position)
        trajectory.latents = trajectory.latents.clone()
        trajectory.past = None if trajectory.done else trajectory.past.clone()
        trajectory.noise_before = trajectory.noise_before.clone() if reads else None
        kept = trajectory.has_momentum and not trajectory.done
        trajectory.difference = trajectory.difference.clone() if kept else None
        self.latents[slot].zero_()
        if self._inpainting is not None:
            self._inpainting.known[slot].zero_()
            self._inpainting.noise[slot].zero_()
            self._inpainting.mask[slot].fill_(1.0)

    def stage(self) -> Extent:
        """Writes the numbers and the fresh noise of every image's next row to the device."""
        self._drawn = []
        numbers, noise = self._numbers.host.numpy(), self._noise.host
        history, draws, inpainted = 1, 0, False
        for slot in range(len(self.latents)):
            trajectory = self._inside.get(slot)
            if trajectory is None:
                numbers[:, slot, 0, 0, 0] = _STAY
                continue
            table, row = trajectory.table, trajectory.position
            numbers[:, slot, 0, 0, 0] = table.numbers[row]
            numbers[Number.GUIDANCE, slot] = trajectory.guidance_now
            history = max(history, table.history)
            inpainted |= trajectory.inpainting is not None
            if table.reads_noise_before(row):
                draws = MOST_NOISE
            if table.C[row, 0]:
                self._drawn.append((trajectory.generator, trajectory.generator.get_state()))
                # With a batch axis of one, as `sd_core.sampling.noise.draw_noise` does.
                fill(noise[slot : slot + 1], trajectory.generator)
        self._numbers.send()
        if self._drawn:
            self._noise.send()
        slots = max(self._inside, default=-1) + 1
        return Extent(slots, history, max(draws, bool(self._drawn)), inpainted)

    def withdraw(self) -> None:
        """Undoes `stage` where no step follows: the next one draws the same noise."""
        for generator, state in self._drawn:
            generator.set_state(state)
        self._drawn = []

    def step(
        self,
        without: Tensor,
        given: Tensor,
        extent: Extent,
        guides: Mapping[int, Guide] = MappingProxyType({}),
        pushed: Mapping[int, Tensor] = MappingProxyType({}),
    ) -> None:
        """Moves every image over the row that was staged; the host waits for nothing.

        without, given: (slots of the extent, 4, h, w) float32 model outputs for the negative prompt
        and the prompt; both the same for an image without guidance. `given` is written over.
        extent: of `stage`, or a larger one, which gives the same bits.
        guides: by slot, of images whose guided outputs are changed as a whole.
        pushed: by slot, (4, h, w), what other guidance adds to that of the negative prompt.
        """
        count = slice(extent.slots)
        x, product = self.latents[count], self._product[count]
        outputs = self._outputs[: extent.history, count].unbind()
        numbers = self._numbers.tensor[:, count].unbind()
        # Classifier-free guidance (Ho & Salimans 2022): away from the unconditional prediction.
        alone = {slot: given[slot].clone() for slot in guides}
        eps = given.sub_(without).mul_(numbers[Number.GUIDANCE]).add_(without)
        differences: dict[int, Tensor] = {}
        for slot, guide in guides.items():
            own = guide.project(alone[slot], without[slot], x[slot], self._differences[slot])
            if own is not None:
                eps[slot].copy_(own[0])
                differences[slot] = own[1]
        for slot, push in pushed.items():
            eps[slot].add_(push)
        for slot, guide in guides.items():
            guide.apply(eps[slot], alone[slot], x[slot])
        # From here on nothing is allocated: what raises before has moved nothing.
        for slot, difference in differences.items():
            self._differences[slot].copy_(difference)
        for older, newer in zip(outputs[:0:-1], outputs[-2::-1], strict=True):
            older.copy_(newer)
        # Products and sums one by one: a fused product and sum would round otherwise.
        torch.mul(numbers[Number.P], x, out=outputs[0])
        outputs[0].add_(torch.mul(numbers[Number.Q], eps, out=product))
        x.mul_(numbers[Number.A])
        for output, weights in zip(outputs, numbers[Number.B :], strict=False):
            x.add_(torch.mul(weights, output, out=product))
        if extent.noise:
            noise, before = self._noise.tensor[count], self._noise_before[count]
            x.add_(torch.mul(numbers[Number.C], noise, out=product))
            if extent.noise > 1:
                x.add_(torch.mul(numbers[Number.C + 1], before, out=product))
            before.copy_(noise)
        if extent.inpainted and self._inpainting is not None:
            self._return_known(self._inpainting, count, numbers)

    def stepped(self) -> None:
        """Counts the step that every image took."""
        self._drawn = []
        for trajectory in self._inside.values():
            trajectory.position += 1

    def _keep(self, slot: int, own: Inpainting) -> None:
        if self._inpainting is None:
            like = self.latents
            mask = torch.ones_like(like[:, :1])
            self._inpainting = Inpainting(torch.zeros_like(like), torch.zeros_like(like), mask)
        self._inpainting.known[slot].copy_(own.known)
        self._inpainting.noise[slot].copy_(own.noise)
        self._inpainting.mask[slot].copy_(own.mask)

    def _return_known(
        self, inpainting: Inpainting, count: slice, numbers: Sequence[Tensor]
    ) -> None:
        """Puts back the init image outside the mask, at the noise level that the row leads to.

        The masked sampling of Lugmayr et al. 2022 (RePaint) without its resampling.
        """
        mask, known, product = inpainting.mask[count], self._sum[count], self._product[count]
        torch.mul(numbers[Number.KNOWN], inpainting.known[count], out=known)
        known.add_(torch.mul(numbers[Number.KNOWN_NOISE], inpainting.noise[count], out=product))
        kept = torch.sub(1, mask, out=self._kept[count])
        self.latents[count].mul_(mask).add_(known.mul_(kept))


def _taken(place: Tensor, own: Tensor | None) -> Tensor:
    """The place, with an image's own numbers in it; zeros where it has none."""
    return place.zero_() if own is None else place.copy_(own)


def _check(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.shape != like.shape or tensor.dtype != like.dtype:
        raise ValueError(
            f"{name} are {tensor.dtype} {tuple(tensor.shape)}; "
            f"expected {like.dtype} {tuple(like.shape)}"
        )
