"""Runs the model for images in flight: starts them, evaluates a batch, decodes the finished.

The engine decides which images, and when; here is only the arithmetic, on the engine's thread.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.device import device_kind, release_memory
from sd_core.engine.batch_rows import Rows
from sd_core.engine.inflight import Group, InflightRequest, PendingOutput, _strength
from sd_core.engine.inflight_batch import InflightBatch
from sd_core.engine.memory import Capacity, is_out_of_memory
from sd_core.engine.prompts import EncodedPrompts
from sd_core.engine.request import Batch, Pixels, Rendered, Request
from sd_core.engine.row_roles import RowRoles
from sd_core.engine.snapshot import load_trajectory, most_bytes, save_trajectory
from sd_core.engine.timesteps import EmbeddedTimesteps
from sd_core.execution import CAPTURED
from sd_core.gpu.graphs import Graphs
from sd_core.gpu.pace import Pace, pace_of
from sd_core.model.adapters import adapted, changes_of
from sd_core.model.beside import beside, placed
from sd_core.model.diffusion import LatentDiffusion
from sd_core.model.places import attentions_called, changing
from sd_core.model.vae import AutoencoderKL
from sd_core.pixels import NOT_FINITE, finite, to_uint8
from sd_core.sampling.noise import generator_for, noise_of
from sd_core.sampling.samplers import guided_rows, step_table
from sd_core.sampling.slots import Extent
from sd_core.sampling.step_table import MOST_HISTORY, MOST_NOISE, StepTable
from sd_core.sampling.trajectory import Inpainting, Trajectory, from_latents, from_noise
from sd_core.setting_texts import freeu_of, has_momentum, projection_of
from sd_core.spec import LATENT_FACTOR, ModelSpec, Sampling
from sd_core.transfer import CopyOut, to_device

BATCHES_KEPT = 4  # groups; at v1 size about 4 MB a row, for the prompts
CAPTURE_AFTER = 8
"""Evaluations of a batch with long or several prompts, adapters or other changes of rows, all the
same, before it is captured: a prompt may change from step to step.
"""

KEYS_COUNTED = 256

REPAINT = 128  # mask values from here on are repainted


_GraphKey = tuple[Group, int, bool, Hashable]
"""Group, rows, an inpainted image among them, `InflightBatch.variant`."""


class ModelRunner:
    """The model's work for flights. rows: how many go together; capacity: the device's memory."""

    def __init__(self, model: LatentDiffusion, rows: Rows, capacity: Capacity) -> None:
        self.model = model
        self._rows = rows
        self._capacity = capacity
        self._prompts = EncodedPrompts(model)
        self._device_kind = device_kind(model.device)
        self._timesteps = EmbeddedTimesteps(model)
        self._batches: OrderedDict[Group, InflightBatch] = OrderedDict()  # oldest use first
        # Rows used and rows of an evaluation; None for a decode.
        self._pace: Pace[tuple[int, int] | None] = pace_of(model.device)
        self.busy_s = 0.0  # of what the device has ended
        self.compiling = False  # or capturing
        self._programs: set[tuple[object, ...]] = set()  # that were called before
        self._ended: list[Batch] = []
        self._graphs: Graphs[_GraphKey] | None = None
        self._counts: Counter[_GraphKey] = Counter()  # of those that few batches may have
        if model.device.type == "cuda" and model.execution in CAPTURED:
            self._graphs = Graphs(model.device)

    # Start

    def start(self, flight: InflightRequest) -> None:
        """Encodes the prompts and sets up the trajectory, or takes it from the saved state.

        Raises `StateError` if that is not one of this request, `ValueError` for what the model
        cannot do, and `MemoryError` if the device cannot hold such an image.
        """
        request = flight.evaluated
        self._capacity.check(flight.shape, min(flight.rows, self._rows.of(flight.shape)))
        flight.admitted = time.monotonic()
        flight.contexts = self._prompts.get(request.conditions, flight.loras, flight.embeddings)
        flight.roles = self._roles(request)
        flight.apart = self.model.execution == "compiled" and _has_additions(flight)
        table = table_of(request, self.model.spec)
        if flight.state is None:
            flight.trajectory = self._begin(request, table, flight.added.vae)
        else:
            flight.trajectory, flight.exact = load_trajectory(
                flight.state,
                table,
                kind=self._kind(flight.request),
                guidance=request.sampling.guidance,
                shape=flight.shape,
                noise=request.sampling.noise,
                inpainted=request.mask is not None,
                momentum=has_momentum(request.sampling.apg),
                device=self.model.device,
            )
            flight.state = None
        flight.flying.projection = projection_of(request.sampling.apg)
        flight.flying.guided = guided_rows(request.sampling, table, _strength(request))

    def _roles(self, request: Request) -> RowRoles:
        sampling = request.sampling
        layers = sampling.pag_layers if sampling.pag_scale else ""
        return RowRoles(
            weights=tuple(condition.weight for condition in request.prompts),
            negative=len(request.conditions) > len(request.prompts),
            pag_scale=sampling.pag_scale,
            layers=attentions_called(self.model.unet.attentions, layers),
            freeu=freeu_of(sampling.freeu),
        )

    def encode_ahead(self, waiting: Iterable[InflightRequest]) -> None:
        """Prepares prompts of images that begin soon, where the device can beside its work."""
        self._prompts.encode_ahead((f.evaluated.conditions, f.loras, f.embeddings) for f in waiting)

    def save(self, flight: InflightRequest) -> bytes:
        """State that `start` continues from, in any process with this model and a device of this
        kind (`sd_core.device.device_kind`).
        """
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
            self._device_kind,
            self.model.execution,
            rows,
        ]
        if self.model.kernels:
            parts.append(self.model.kernels)
        return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()

    def _begin(self, request: Request, table: StepTable, vae: AutoencoderKL | None) -> Trajectory:
        sampling, device = request.sampling, self.model.device
        if request.init_image is None:
            drawn, generator = noise_of(sampling)
            latents = to_device(from_noise(table, drawn), device)
            return Trajectory(table, latents, generator, sampling.guidance)
        # First the autoencoder's sample, then the noise, from one generator, as diffusers does.
        # Noise of GPUs is for those who know the web UI's, where the sample is from another.
        images = _to_tensor(request.init_image)[None]
        clean = self.model.encode_image(images, [generator_for(sampling.seed)], vae)[0]
        drawn, generator = noise_of(sampling, after=1 if sampling.noise == "cpu" else 0)
        noise = to_device(drawn, device)
        inpainting = None
        if request.mask is not None:
            inpainting = Inpainting(clean, noise, to_device(_latent_mask(request.mask), device))
        latents = from_latents(table, clean, noise)
        return Trajectory(table, latents, generator, sampling.guidance, inpainting)

    # Evaluate

    def evaluate(self, flights: list[InflightRequest]) -> None:
        """Queues one evaluation for all of them, which are of one group; each moves one row on, or
        none of them if it raises.
        """
        group = flights[0].group
        shape = group.shape
        used = sum(flight.rows for flight in flights)
        exact = any(flight.request.exact for flight in flights)
        rows = self._rows.padded(shape, used, exact=exact)
        check = self._rows.unchecked(shape, used) if exact else None
        self._pace.begin()
        self._timesteps.add([flight.times for flight in flights])
        batch = self._batch(group, rows)
        try:
            batch.join(flights, rows if check is None else used)
            extent = batch.stage(flights, rows)
            with self._program("evaluation", group, rows, extent.inpainted):
                calls = self._advance(group, batch, rows, extent, check)
        except BaseException:
            batch.withdraw()
            self._note(self._pace.rest())  # what is staged next may be written to at once
            raise
        batch.stepped()
        for flight in flights:
            flight.exact &= all(self._rows.gives_exact(shape, count) for count in calls)
        self._note(self._pace.end((used, rows)))

    def ended(self, *, wait: bool = False) -> list[Batch]:
        """Evaluations that the device has ended since this was last asked. wait: for all of them.

        Raises what the device tells late, such as that it is lost.
        """
        if wait:
            self._note(self._pace.rest())
        ended, self._ended = self._ended, []
        return ended

    @property
    def captures(self) -> int:
        """Graphs that were captured."""
        return 0 if self._graphs is None else self._graphs.captured

    @contextmanager
    def _program(self, *key: object) -> Iterator[None]:
        """A call of what is compiled or captured, where the model is, the first time it is called.

        key: the same for calls of one program.
        """
        self.compiling = self.model.execution in CAPTURED and key not in self._programs
        try:
            yield
            self._programs.add(key)
        finally:
            self.compiling = False

    def _note(self, ended: list[tuple[tuple[int, int] | None, float]]) -> None:
        self.busy_s += sum(seconds for _, seconds in ended)
        self._ended += [Batch(*counts, seconds) for counts, seconds in ended if counts is not None]

    def _advance(
        self, group: Group, batch: InflightBatch, rows: int, extent: Extent, check: int | None
    ) -> set[int]:
        """Evaluates the model and moves the images; the row counts of its calls of the model.

        check: a row count to compare with this one.
        """
        shape = group.shape
        whole = check is None and self._rows.limit(shape, rows) == rows
        if self._graphs is not None and whole and not batch.changes_by_step:

            def evaluate() -> Tensor:
                return self._outputs(group, batch, slice(rows))

            # The step of a graph is one for any images of the batch.
            any_images = Extent(len(batch.latents), MOST_HISTORY, MOST_NOISE, extent.inpainted)
            key = group, rows, extent.inpainted, batch.variant
            if (batch.variant is None or self._came_often(key)) and self._graphs.run(
                key, lambda: batch.step(evaluate(), any_images), evaluate
            ):
                self._rows.went_well(shape)
                return {rows}
        eps, calls = self._denoise(group, batch, rows)
        if check is not None and calls == {self._rows.of(group.shape)}:
            self._check(group, batch, check, eps)
        batch.step(eps, extent)
        return calls

    def _check(self, group: Group, batch: InflightBatch, rows: int, eps: Tensor) -> None:
        """Compares the evaluation of the first so many rows alone with what all together gave."""
        own = slice(rows)
        try:
            alone = self._outputs(group, batch, own)
        except (RuntimeError, MemoryError):
            return  # the images have their evaluation
        same = torch.equal(alone.view(torch.int32), eps[own].view(torch.int32))
        self._rows.checked(group.shape, rows, same=same)

    def _batch(self, group: Group, rows: int) -> InflightBatch:
        """The batch of this group, for at least so many rows; that of another one may have to make
        room for it.
        """
        known = self._batches.get(group)
        if known is not None and len(known.latents) < rows:
            self._drop(group)
        if group not in self._batches:
            if len(self._batches) >= BATCHES_KEPT:
                self._drop(next(iter(self._batches)))
            rows = max(rows, self._rows.of(group.shape))
            batch = InflightBatch(self.model, self._timesteps, group.shape, rows)
            self._batches[group] = batch
        self._batches.move_to_end(group)
        return self._batches[group]

    def _drop(self, group: Group) -> None:
        """Frees a batch; its images keep their state."""
        self._batches.pop(group).join([], 0)
        if self._graphs is not None:
            self._graphs.drop(lambda key: key[0] == group)

    def _came_often(self, key: _GraphKey) -> bool:
        """True from the time on that a key came so often that capturing it is worth its second."""
        self._counts[key] += 1
        if len(self._counts) > KEYS_COUNTED:
            self._counts.clear()
        return self._counts[key] > CAPTURE_AFTER

    def leave(self, flight: InflightRequest) -> None:
        """Takes an image that needs no more evaluations out of its batch."""
        if flight.group in self._batches:
            self._batches[flight.group].leave(flight)

    def _denoise(self, group: Group, batch: InflightBatch, total: int) -> tuple[Tensor, set[int]]:
        """The model's outputs, and the row counts of its calls: several, while memory is short."""
        shape = group.shape
        done, calls = 0, set()
        outputs: list[Tensor] = []
        while done < total:
            size = self._rows.limit(shape, total - done)
            part = slice(done, done + size)
            try:
                outputs.append(self._outputs(group, batch, part))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self._rows.ran_out(shape, size):
                    raise
                self._free_memory()
                continue
            done += size
            calls.add(size)
        self._rows.went_well(shape)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs), calls

    def _outputs(self, group: Group, batch: InflightBatch, rows: slice) -> Tensor:
        unet, given, changes = self.model.unet, batch.adapters(rows), batch.changes(rows)
        if group.apart:
            all_changes = dict([*changes_of(unet, given), *batch.longer(rows)]) | changes
            with placed({**unet.adapters, **unet.places}), beside(all_changes):
                contexts = batch.placed_contexts(rows)
                return self.model.denoise(batch.latents[rows], batch.times[rows], contexts)
        with adapted(unet.adapters, given), changing(unet.places, changes):
            contexts = batch.contexts(rows)
            return self.model.denoise(batch.latents[rows], batch.times[rows], contexts)

    def _free_memory(self) -> None:
        if self._graphs is not None:
            self._graphs.forget()
        release_memory(self.model.device)

    # Finish

    def decode(self, flights: list[InflightRequest]) -> PendingOutput:
        """Pixels of finished trajectories that are `decoded_as` each other, on their way out."""
        vae = flights[0].added.vae
        latents = torch.stack([flight.flying.latents for flight in flights])
        rows = self._rows.padded_decode(
            flights[0].shape, len(flights), exact=flights[0].request.exact
        )
        nothing = latents.new_zeros(rows - len(flights), *latents.shape[1:])
        padded = torch.cat([latents, nothing])
        self._pace.begin()
        try:
            with self._program("decode", flights[0].shape, rows):
                pixels = self.model.decode(padded, vae)[: len(flights)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(padded) == 1:
                raise
            self._free_memory()
            pixels = torch.cat([self.model.decode(one[None], vae) for one in latents])
            for flight in flights:
                flight.exact = False
        output = PendingOutput(flights, CopyOut(to_uint8(pixels), finite(pixels), latents))
        self._note(self._pace.end(None))
        return output

    def rendered(self, flight: InflightRequest, arrived: Sequence[Tensor]) -> Rendered:
        """The finished image. arrived: its part of a `PendingOutput`. Raises `ArithmeticError` if
        its numbers went out of range.
        """
        decoded, decoded_well, latents = arrived
        request, table = flight.request, flight.flying.table
        if not torch.isfinite(latents).all():
            raise ArithmeticError(
                f"the latents are no longer finite after {len(table)} "
                f"evaluation{'' if len(table) == 1 else 's'} in "
                f"{str(self.model.dtype).removeprefix('torch.')}; try dtype float32 or bfloat16"
            )
        if not decoded_well:
            raise ArithmeticError(NOT_FINITE)
        pixels = decoded.numpy()
        if request.mask is not None and request.init_image is not None:
            # The autoencoder would change what the mask keeps.
            pixels = np.where(request.mask[..., None] >= REPAINT, pixels, request.init_image)
        seconds = time.monotonic() - flight.admitted
        exact = flight.exact and request.exact
        return Rendered(pixels, latents, len(table), seconds, exact)


def _has_additions(flight: InflightRequest) -> bool:
    """True for adapters and changes of the UNet, and for a prompt that has several chunks at any
    step.
    """
    if flight.roles.layers or flight.roles.freeu is not None:
        return True
    chunks = [len(until.context) for row in flight.contexts for until in row]
    return max(chunks) > 1 or (flight.loras is not None and bool(flight.loras.others))


def table_of(request: Request, model: ModelSpec) -> StepTable:
    """The steps that a request goes through."""
    sampling: Sampling = request.sampling
    return step_table(
        sampling.sampler,
        sampling.steps,
        strength=_strength(request),
        strength_rule=sampling.strength_rule,
        eta=sampling.eta,
        karras=sampling.karras,
        schedule=sampling.schedule,
        prediction=model.prediction,
        zero_snr=model.zero_snr,
    )


def largest_state(request: Request) -> int:
    """Bytes that no saved state of this request exceeds: more of them are none."""
    sampling = request.sampling
    return most_bytes(
        table_of(request, ModelSpec()),
        sampling.latent_shape,
        sampling.noise,
        inpainted=request.mask is not None,
        momentum=has_momentum(sampling.apg),
    )


def _to_tensor(pixels: Pixels) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) float32 in [-1, 1]."""
    return torch.tensor(pixels).permute(2, 0, 1).float() / 127.5 - 1


def _latent_mask(mask: Pixels) -> Tensor:
    """(H, W) uint8 to (1, h, w) float32: 1 where any pixel under a latent pixel is repainted."""
    anew = torch.tensor(mask)[None, None] >= REPAINT
    return F.max_pool2d(anew.float(), LATENT_FACTOR)[0]
