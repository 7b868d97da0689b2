"""In-flight batching: images of any sampler, step count and guidance share the device.

One thread owns the model. At every tick it gives the batch of one latent shape one evaluation of
the UNet, moves its trajectories over one row of their tables, retires the finished ones and admits
waiting ones. An image is two rows of the batch, one with guidance 1.0.

Batches are padded to a fixed row count for each latent shape, and text and images are encoded and
decoded one by one. The kernels' results then depend on the shapes alone, so an image's bytes are
the same whatever it ran with.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sd_core.model import LatentDiffusion
from sd_core.noise import draw_noise, generator_for
from sd_core.samplers import step_table
from sd_core.spec import LATENT_FACTOR, Sampling
from sd_core.trajectory import (
    Inpainting,
    Trajectory,
    advance,
    from_latents,
    from_noise,
    guide,
)

Pixels = NDArray[np.uint8]
OnStep = Callable[[int, int], None]

CONTEXTS_KEPT = 512  # encoded prompts; at v1 size about 240 kB each in float32
# Latent pixels a batch holds, and its most rows, by device. A CPU gains nothing from more once its
# cores are busy: two rows of a 512×512 image, or many of a small one.
BATCH_LATENT_PIXELS = {"cpu": 2 * 64 * 64, "cuda": 16 * 64 * 64}
MOST_ROWS = 16

PAINT_ANEW = 128  # mask values from here on are painted anew


class EngineClosedError(RuntimeError):
    """The engine takes no more requests, or stopped before this one was finished."""


@dataclass(frozen=True)
class Request:
    """One image to render.

    init_image: (H, W, 3) uint8 of exactly the sampling's size, for img2img.
    mask: (H, W) uint8 of that size, with an init image: white is painted anew, the rest is kept
        to the pixel.
    """

    prompt: str
    sampling: Sampling
    negative: str = ""
    init_image: Pixels | None = None
    mask: Pixels | None = None

    def __post_init__(self) -> None:
        size = (self.sampling.height, self.sampling.width)
        if self.init_image is not None and self.init_image.shape != (*size, 3):
            raise ValueError(f"init image is {self.init_image.shape}, not {(*size, 3)}")
        if self.mask is not None and self.init_image is None:
            raise ValueError("a mask goes with an init image")
        if self.mask is not None and self.mask.shape != size:
            raise ValueError(f"mask is {self.mask.shape}, not {size}")


@dataclass(frozen=True)
class Rendered:
    """A finished image: pixels (3, H, W) float32 in [-1, 1] on the CPU.

    evaluations: of the UNet. seconds: from admission to the last pixel; shared with neighbours.
    """

    pixels: Tensor
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class Batch:
    """One evaluation of the model that was made.

    rows_used: rows that held an image. rows: all of them, padding included. seconds: as the
    engine's thread saw it; a device that works in the background may still be at it.
    """

    rows_used: int
    rows: int
    seconds: float


OnBatch = Callable[[Batch], None]


@dataclass
class _Flight:
    """A request on its way: waiting without a trajectory, then with one."""

    request: Request
    future: Future[Rendered]
    on_step: OnStep | None
    trajectory: Trajectory | None = None
    contexts: list[Tensor] = field(default_factory=list)
    admitted: float = 0.0

    @property
    def rows(self) -> int:
        return 1 if self.request.sampling.guidance == 1.0 else 2


def batch_rows(device: str, shape: tuple[int, int]) -> int:
    """Row count of batches of this latent shape (h, w): fixed, so that images are reproducible."""
    fitting = BATCH_LATENT_PIXELS[device] // (shape[0] * shape[1])
    return max(2, min(MOST_ROWS, fitting // 2 * 2))


class Engine:
    """Renders requests on one device. A context manager; `close` is safe to call twice.

    rows: batch rows for every latent shape, at least 2; by default `batch_rows` decides.
    on_batch: called on the engine's thread after each evaluation; it must return at once and not
        raise.
    """

    def __init__(
        self, model: LatentDiffusion, *, rows: int | None = None, on_batch: OnBatch | None = None
    ) -> None:
        if rows is not None and rows < 2:
            raise ValueError(f"rows {rows} does not hold an image with guidance; at least 2")
        self.model = model
        self._rows = rows
        self._on_batch = on_batch
        self._inbox: queue.SimpleQueue[_Flight | None] = queue.SimpleQueue()
        self._waiting: deque[_Flight] = deque()
        self._flying: OrderedDict[tuple[int, int], list[_Flight]] = OrderedDict()
        self._contexts: OrderedDict[str, Tensor] = OrderedDict()
        self._closed = False
        self._drop = False
        self._progressed_at: float | None = None  # None while there is nothing to do
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="sdbatch-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, *, on_step: OnStep | None = None) -> Future[Rendered]:
        """Queues an image. `future.cancel()` takes effect between two steps.

        on_step: called on the engine's thread after each evaluation with (done, all); it must
        return at once. The future's exception is whatever rendering raised; other images go on.
        """
        flight = _Flight(request, Future(), on_step)
        with self._lock:
            if self._closed:
                raise EngineClosedError("the engine is closed")
            self._inbox.put(flight)
        return flight.future

    def close(self, *, cancel: bool = False) -> None:
        """Finishes what was submitted (or, with cancel, drops it between steps) and stops."""
        with self._lock:
            already, self._closed = self._closed, True
        if cancel:
            self._drop = True
        if not already:
            self._inbox.put(None)
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(cancel=kind is not None)

    def rows_of(self, sampling: Sampling) -> int:
        """Row count of the batches that an image of this size runs in."""
        if self._rows is not None:
            return self._rows
        return batch_rows(self.model.device.type, sampling.latent_shape)

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs: until `close`, or an error that nobody foresaw."""
        return self._thread.is_alive()

    def stalled_s(self) -> float:
        """Seconds since work last moved on (an image admitted, a batch evaluated, an image
        decoded); 0 without work.
        """
        progressed_at = self._progressed_at
        return 0.0 if progressed_at is None else max(0.0, time.monotonic() - progressed_at)

    # Everything below runs on the engine's thread.

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            # Whatever went wrong in here, nobody may wait for ever.
            with self._lock:
                self._closed = True
            self._receive(True, block=False)
            for flight in self._everything():
                if flight.future.set_running_or_notify_cancel():
                    flight.future.set_exception(error)
            raise
        finally:
            self._progressed_at = None

    def _serve(self) -> None:
        open_ = True
        while open_ or self._waiting or self._flying:
            open_ = self._receive(open_)
            if self._drop:
                self._abandon()
                continue
            self._admit()
            if self._flying:
                self._tick()

    def _receive(self, open_: bool, *, block: bool = True) -> bool:
        """Moves what was submitted to the waiting line; blocks only when there is nothing to do.

        Returns whether more may come.
        """
        while open_:
            idle = not self._waiting and not self._flying
            if idle and block:
                self._progressed_at = None
            try:
                flight = self._inbox.get(block=block and idle)
            except queue.Empty:
                break
            if idle:
                self._progressed_at = time.monotonic()
            if flight is None:
                return False
            self._waiting.append(flight)
        return open_

    def _abandon(self) -> None:
        for flight in self._everything():
            flight.future.cancel()

    def _everything(self) -> list[_Flight]:
        """Takes all flights out of the engine."""
        flights = [*self._waiting, *(f for group in self._flying.values() for f in group)]
        self._waiting.clear()
        self._flying.clear()
        return flights

    def _admit(self) -> None:
        """Takes waiting images in order, as far as the batch of each latent shape has room."""
        still_waiting: deque[_Flight] = deque()
        full: set[tuple[int, int]] = set()
        for flight in self._waiting:
            shape = flight.request.sampling.latent_shape
            used = sum(f.rows for f in self._flying.get(shape, ()))
            if shape in full or used + flight.rows > self.rows_of(flight.request.sampling):
                full.add(shape)  # nobody overtakes within a shape
                still_waiting.append(flight)
            elif not flight.future.cancelled() and self._attempt(flight, self._start):
                self._flying.setdefault(shape, []).append(flight)
        self._waiting = still_waiting

    def _attempt(self, flight: _Flight, action: Callable[[_Flight], None]) -> bool:
        """Runs one image's own work; its failure is its own and leaves the others alone."""
        try:
            action(flight)
        except Exception as error:
            if flight.future.set_running_or_notify_cancel():
                flight.future.set_exception(error)
            return False
        finally:
            self._progressed_at = time.monotonic()
        return True

    def _start(self, flight: _Flight) -> None:
        request, sampling = flight.request, flight.request.sampling
        flight.admitted = time.monotonic()
        prompts = [request.prompt] if flight.rows == 1 else [request.negative, request.prompt]
        flight.contexts = [self._encode(prompt) for prompt in prompts]
        generator = generator_for(sampling.seed)
        device = self.model.device
        table = step_table(
            sampling.sampler,
            sampling.steps,
            strength=None if request.init_image is None else sampling.strength,
            eta=sampling.eta,
            karras=sampling.karras,
        )
        inpainting = None
        if request.init_image is None:
            latents = from_noise(table, generator, sampling.latent_shape).to(device)
        else:
            # First the autoencoder's sample, then the noise, from one generator, as diffusers does.
            images = _to_tensor(request.init_image)[None]
            clean = self.model.encode_image(images, [generator])[0]
            noise = draw_noise(generator, (4, *sampling.latent_shape)).to(device)
            latents = from_latents(table, clean, noise)
            if request.mask is not None:
                inpainting = Inpainting(clean, noise, _latent_mask(request.mask).to(device))
        flight.trajectory = Trajectory(table, latents, generator, sampling.guidance, inpainting)

    def _encode(self, prompt: str) -> Tensor:
        """(77, d) context of a prompt, from the cache of the most recent ones."""
        context = self._contexts.get(prompt)
        if context is None:
            context = self._contexts[prompt] = self.model.encode_prompt([prompt])[0]
            if len(self._contexts) > CONTEXTS_KEPT:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(prompt)
        return context

    def _tick(self) -> None:
        """One evaluation for the latent shape whose turn it is; then the next shape's turn."""
        shape, flights = self._flying.popitem(last=False)
        flights = [f for f in flights if not f.future.done()]
        moving = [f for f in flights if f.trajectory is not None and not f.trajectory.done]
        try:
            if moving:
                self._evaluate(moving)
        except Exception as error:
            for flight in flights:
                if flight.future.set_running_or_notify_cancel():
                    flight.future.set_exception(error)
            return
        remaining = []
        for flight in flights:
            if flight.future.done():
                continue
            if flight.trajectory is not None and flight.trajectory.done:
                self._attempt(flight, self._finish)
            else:
                remaining.append(flight)
        if remaining:
            self._flying[shape] = remaining

    def _evaluate(self, flights: list[_Flight]) -> None:
        started = time.monotonic()
        latents, timesteps, contexts = [], [], []
        for flight in flights:
            trajectory = _trajectory(flight)
            for context in flight.contexts:
                latents.append(trajectory.latents)
                timesteps.append(trajectory.timestep)
                contexts.append(context)
        used = len(latents)
        padding = self.rows_of(flights[0].request.sampling) - used
        latents += [torch.zeros_like(latents[0])] * padding
        timesteps += [0.0] * padding
        contexts += [contexts[0]] * padding
        eps = self.model.denoise(
            torch.stack(latents),
            torch.tensor(timesteps, dtype=torch.float32, device=self.model.device),
            torch.stack(contexts),
        )
        guided, row = [], 0
        for flight in flights:
            own = eps[row : row + flight.rows]
            row += flight.rows
            guidance = flight.request.sampling.guidance
            guided.append(own[0] if flight.rows == 1 else guide(own[0], own[1], guidance))
        advance([_trajectory(f) for f in flights], torch.stack(guided))
        self._progressed_at = time.monotonic()
        if self._on_batch is not None:
            self._on_batch(Batch(used, used + padding, self._progressed_at - started))
        for flight in flights:
            if flight.on_step is not None:
                self._attempt(flight, _report_step)

    def _finish(self, flight: _Flight) -> None:
        trajectory = _trajectory(flight)
        if not torch.isfinite(trajectory.latents).all():
            raise ArithmeticError(
                f"the latents are no longer finite after {len(trajectory.table)} evaluations in "
                f"{str(self.model.dtype).removeprefix('torch.')}; try dtype float32 or bfloat16"
            )
        pixels = self.model.decode(trajectory.latents[None])[0].cpu()
        request = flight.request
        if request.mask is not None and request.init_image is not None:
            # The autoencoder would change what the mask keeps.
            anew = torch.tensor(request.mask) >= PAINT_ANEW
            pixels = torch.where(anew, pixels, _to_tensor(request.init_image))
        seconds = time.monotonic() - flight.admitted
        if flight.future.set_running_or_notify_cancel():
            flight.future.set_result(Rendered(pixels, len(trajectory.table), seconds))


def _trajectory(flight: _Flight) -> Trajectory:
    if flight.trajectory is None:
        raise RuntimeError("a flight without a trajectory is still waiting")
    return flight.trajectory


def _report_step(flight: _Flight) -> None:
    trajectory = _trajectory(flight)
    if flight.on_step is not None:
        flight.on_step(trajectory.position, len(trajectory.table))


def _to_tensor(pixels: Pixels) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) float32 in [-1, 1]."""
    return torch.tensor(pixels).permute(2, 0, 1).float() / 127.5 - 1


def _latent_mask(mask: Pixels) -> Tensor:
    """(H, W) uint8 to (1, h, w) float32: 1 where any pixel under a latent pixel is painted anew."""
    anew = torch.tensor(mask)[None, None] >= PAINT_ANEW
    return F.max_pool2d(anew.float(), LATENT_FACTOR)[0]
