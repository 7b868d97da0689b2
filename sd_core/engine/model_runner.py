"""Runs the model for images in flight: starts them, evaluates a batch, decodes the finished.

The engine decides which images, and when; here is only the arithmetic, on the engine's thread.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.device import CopyOut, release_memory
from sd_core.engine.batch_rows import Rows
from sd_core.engine.inflight import InflightRequest, PendingOutput, _strength
from sd_core.engine.memory import Capacity, is_out_of_memory
from sd_core.engine.request import Batch, Pixels, Rendered, Request
from sd_core.engine.snapshot import load_trajectory, most_bytes, save_trajectory
from sd_core.model.diffusion import LatentDiffusion
from sd_core.model.layers import KeysValues
from sd_core.model.unet import stack_contexts
from sd_core.sampling.noise import draw_noise, generator_for
from sd_core.sampling.samplers import StepTable, step_table
from sd_core.sampling.trajectory import (
    Inpainting,
    Trajectory,
    advance,
    from_latents,
    from_noise,
    guide,
)
from sd_core.spec import LATENT_FACTOR, Sampling, Shape

PROMPTS_KEPT = 64  # projected for every attention; at v1 size about 4 MB each in bfloat16
TABLES_KEPT = 64  # embedded timesteps; at v1 size about 2 MB for 50 steps
REPAINT = 128  # mask values from here on are repainted


class ModelRunner:
    """The model's work for flights. rows: how many go together; capacity: the device's memory."""

    def __init__(self, model: LatentDiffusion, rows: Rows, capacity: Capacity) -> None:
        self.model = model
        self._rows = rows
        self._capacity = capacity
        self._contexts: OrderedDict[str, list[KeysValues]] = OrderedDict()
        self._times: OrderedDict[int, tuple[StepTable, Tensor]] = OrderedDict()
        self._joined: tuple[list[int], int, list[KeysValues]] = ([], 0, [])

    # Start

    def start(self, flight: InflightRequest) -> None:
        """Encodes the prompts and sets up the trajectory, or takes it from the saved state.

        Raises `StateError` if that is not one of this request, and `MemoryError` if the device
        cannot hold such an image.
        """
        request = flight.request
        self._capacity.check(flight.shape, flight.rows)
        flight.admitted = time.monotonic()
        prompts = [request.prompt] if flight.rows == 1 else [request.negative, request.prompt]
        flight.contexts = [self._encode(prompt) for prompt in prompts]
        table = table_of(request)
        flight.times = self._embed(table)
        if flight.state is None:
            flight.trajectory = self._begin(request, table)
        else:
            flight.trajectory, flight.exact = load_trajectory(
                flight.state,
                table,
                kind=self._kind(request),
                guidance=request.sampling.guidance,
                shape=flight.shape,
                inpainted=request.mask is not None,
                device=self.model.device,
            )
            flight.state = None

    def save(self, flight: InflightRequest) -> bytes:
        """State that `start` continues from, in any process with this model and kind of device."""
        kind = self._kind(flight.request)
        return save_trajectory(flight.flying, kind=kind, exact=flight.exact)

    def _kind(self, request: Request) -> str:
        """All that the next evaluations' numbers depend on, besides the saved tensors."""
        shape = request.sampling.latent_shape
        rows = self._rows.of(shape) if request.exact else 0
        parts = [
            request.digest(),
            self.model.digest,
            self.model.dtype,
            self.model.device.type,
            self.model.execution,
            rows,
        ]
        return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()

    def _begin(self, request: Request, table: StepTable) -> Trajectory:
        sampling, device = request.sampling, self.model.device
        generator = generator_for(sampling.seed)
        if request.init_image is None:
            latents = from_noise(table, generator, sampling.latent_shape).to(device)
            return Trajectory(table, latents, generator, sampling.guidance)
        # First the autoencoder's sample, then the noise, from one generator, as diffusers does.
        images = _to_tensor(request.init_image)[None]
        clean = self.model.encode_image(images, [generator])[0]
        noise = draw_noise(generator, (4, *sampling.latent_shape)).to(device)
        inpainting = None
        if request.mask is not None:
            inpainting = Inpainting(clean, noise, _latent_mask(request.mask).to(device))
        latents = from_latents(table, clean, noise)
        return Trajectory(table, latents, generator, sampling.guidance, inpainting)

    def _encode(self, prompt: str) -> list[KeysValues]:
        """Keys and values of a prompt for each attention, (heads, 77, d), from a cache of the
        latest.
        """
        context = self._contexts.get(prompt)
        if context is None:
            projected = self.model.project_context(self.model.encode_prompt([prompt]))
            context = self._contexts[prompt] = [(keys[0], values[0]) for keys, values in projected]
            if len(self._contexts) > PROMPTS_KEPT:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(prompt)
        return context

    def _embed(self, table: StepTable) -> Tensor:
        """(len(table), n): the timesteps of a table, all embedded at once, from a like cache."""
        if id(table) not in self._times:
            times = self.model.embed_timesteps(torch.tensor(table.t, dtype=torch.float32))
            self._times[id(table)] = table, times  # the table too, for its id is to stay its own
            if len(self._times) > TABLES_KEPT:
                self._times.popitem(last=False)
        self._times.move_to_end(id(table))
        return self._times[id(table)][1]

    # Evaluate

    def evaluate(self, shape: Shape, flights: list[InflightRequest]) -> Batch:
        """One evaluation for all of them, which are of this shape; each moves one row on, or none
        of them if it raises.
        """
        began = time.monotonic()
        used = sum(flight.rows for flight in flights)
        rows = self._rows.padded(shape, used, exact=any(f.request.exact for f in flights))
        latents = [f.flying.latents for f in flights for _ in range(f.rows)]
        latents += [torch.zeros_like(latents[0])] * (rows - used)
        times = [_time_of(f) for f in flights for _ in range(f.rows)]
        times += [times[0]] * (rows - used)
        stacked = torch.stack(latents)
        if stacked.shape[1:] != (4, *shape) or stacked.dtype != torch.float32:
            raise ValueError(
                f"latents are {stacked.dtype} {tuple(stacked.shape[1:])}; "
                f"expected {torch.float32} {(4, *shape)}"
            )
        contexts = self._join(flights, rows)
        eps, fewest = self._denoise(shape, stacked, torch.stack(times), contexts)
        guided, row = [], 0
        for flight in flights:
            own = eps[row : row + flight.rows]
            row += flight.rows
            guidance = flight.request.sampling.guidance
            guided.append(own[0] if flight.rows == 1 else guide(own[0], own[1], guidance))
        advance([flight.flying for flight in flights], torch.stack(guided))
        for flight in flights:
            flight.exact &= fewest == self._rows.of(shape)
        return Batch(used, rows, time.monotonic() - began)

    def _join(self, flights: list[InflightRequest], rows: int) -> list[KeysValues]:
        """The contexts of a batch, padded; kept while the same images go on together."""
        # Known by their numbers: what has landed is not to be kept alive.
        arrived = [flight.arrived for flight in flights]
        if self._joined[:2] != (arrived, rows):
            contexts = [context for flight in flights for context in flight.contexts]
            contexts += [contexts[0]] * (rows - len(contexts))
            self._joined = arrived, rows, stack_contexts(contexts)
        return self._joined[2]

    def _denoise(
        self, shape: Shape, latents: Tensor, times: Tensor, contexts: list[KeysValues]
    ) -> tuple[Tensor, int]:
        """The model's outputs, and the fewest rows of a call: parts, while memory is short."""
        total, done, fewest = len(latents), 0, len(latents)
        outputs: list[Tensor] = []
        while done < total:
            size = self._rows.limit(shape, total - done)
            part = slice(done, done + size)
            own = [(keys[part], values[part]) for keys, values in contexts]
            try:
                outputs.append(self.model.denoise(latents[part], times[part], own))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self._rows.ran_out(shape, size):
                    raise
                release_memory(self.model.device)
                continue
            done, fewest = done + size, min(fewest, size)
        self._rows.went_well(shape)
        return torch.cat(outputs), fewest

    # Finish

    def decode(self, flights: list[InflightRequest]) -> PendingOutput:
        """Pixels of finished trajectories of one shape, all exact or none, on their way out."""
        latents = torch.stack([flight.flying.latents for flight in flights])
        rows = self._rows.padded_decode(len(flights), exact=flights[0].request.exact)
        nothing = latents.new_zeros(rows - len(flights), *latents.shape[1:])
        padded = torch.cat([latents, nothing])
        try:
            pixels = self.model.decode(padded)[: len(flights)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(padded) == 1:
                raise
            release_memory(self.model.device)
            pixels = torch.cat([self.model.decode(one[None]) for one in latents])
            for flight in flights:
                flight.exact = False
        return PendingOutput(flights, CopyOut(pixels, latents))

    def rendered(self, flight: InflightRequest, pixels: Tensor, latents: Tensor) -> Rendered:
        """The finished image. Raises `ArithmeticError` if its numbers went out of range."""
        request, table = flight.request, flight.flying.table
        if not torch.isfinite(latents).all():
            raise ArithmeticError(
                f"the latents are no longer finite after {len(table)} "
                f"evaluation{'' if len(table) == 1 else 's'} in "
                f"{str(self.model.dtype).removeprefix('torch.')}; try dtype float32 or bfloat16"
            )
        if request.mask is not None and request.init_image is not None:
            # The autoencoder would change what the mask keeps.
            anew = torch.tensor(request.mask) >= REPAINT
            pixels = torch.where(anew, pixels, _to_tensor(request.init_image))
        seconds = time.monotonic() - flight.admitted
        return Rendered(pixels, len(table), seconds, flight.exact and request.exact)


def _time_of(flight: InflightRequest) -> Tensor:
    """(n,): the embedded timestep of the next evaluation."""
    if flight.times is None:
        raise RuntimeError("a flight without a trajectory is still waiting")
    return flight.times[flight.flying.position]


def table_of(request: Request) -> StepTable:
    """The steps that a request goes through."""
    sampling: Sampling = request.sampling
    return step_table(
        sampling.sampler,
        sampling.steps,
        strength=_strength(request),
        eta=sampling.eta,
        karras=sampling.karras,
    )


def largest_state(request: Request) -> int:
    """Bytes that no saved state of this request exceeds: more of them are none."""
    shape = request.sampling.latent_shape
    return most_bytes(table_of(request), shape, inpainted=request.mask is not None)


def _to_tensor(pixels: Pixels) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) float32 in [-1, 1]."""
    return torch.tensor(pixels).permute(2, 0, 1).float() / 127.5 - 1


def _latent_mask(mask: Pixels) -> Tensor:
    """(H, W) uint8 to (1, h, w) float32: 1 where any pixel under a latent pixel is repainted."""
    anew = torch.tensor(mask)[None, None] >= REPAINT
    return F.max_pool2d(anew.float(), LATENT_FACTOR)[0]
