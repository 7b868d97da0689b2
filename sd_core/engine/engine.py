"""In-flight batching: images of any sampler, step count and guidance share the device.

One thread owns the model (`loop`). An image is mostly two rows of the batch, one without guidance.
It joins and leaves between any two evaluations, so urgent work waits for one evaluation and one
decode at most.

Batches of exact images are padded to a fixed row count for each latent shape, or to a smaller one
that was seen to give the same bits (`batch_rows`), and text and images are encoded and decoded at
fixed batch sizes. So an image's bytes are the same whatever it ran with.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future

from sd_core.cpu.packing import packed_bytes
from sd_core.device import own_memory
from sd_core.engine.added import Added, AddedWeights
from sd_core.engine.batch_rows import MOST_ROWS, Rows, batch_rows
from sd_core.engine.embeddings import EmbeddingCache
from sd_core.engine.inflight import InflightRequest, unguided
from sd_core.engine.loop import EngineLoop
from sd_core.engine.memory import Capacity, room_for_adapters
from sd_core.engine.model_runner import ModelRunner, table_of
from sd_core.engine.prompts import PROMPTS_KEPT
from sd_core.engine.request import (
    Batch,
    EngineClosedError,
    OnBatch,
    OnStep,
    Rendered,
    Request,
    Suspended,
)
from sd_core.execution import CAPTURED
from sd_core.model.diffusion import LatentDiffusion
from sd_core.model.embeddings import Embeddings
from sd_core.spec import Sampling, whole_number

__all__ = [
    "MOST_ROWS",
    "Batch",
    "Engine",
    "EngineClosedError",
    "Rendered",
    "Request",
    "Suspended",
    "batch_rows",
]

MOST_COMPILE_S = 1800.0
"""Seconds that compiling a program may take: minutes on a GPU, more on a busy CPU."""


class Engine:
    """Renders requests on one device. A context manager; `close` is safe to call twice.

    rows: batch rows for every latent shape, at least 2; by default `batch_rows` decides, and fewer
        where the device's memory holds fewer.
    on_batch: called on the engine's thread after each evaluation; it must return at once and not
        raise.
    adapter_bytes: memory of the device for adapters and autoencoders: for those of images in the
        engine, and for the latest used. By default 1 GiB, or a sixteenth of the device's memory.
    Raises `ValueError` for arguments of another type, and for less than 2 rows.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        *,
        rows: int | None = None,
        on_batch: OnBatch | None = None,
        adapter_bytes: int | None = None,
    ) -> None:
        if rows is not None and whole_number("rows", rows, "of at least 2") < 2:
            raise ValueError(f"rows {rows} does not hold an image with guidance; at least 2")
        if not isinstance(model, LatentDiffusion):
            raise ValueError(
                f"model is {model!r:.80}; expected a LatentDiffusion, of sd_core.load_model"
            )
        _check_callable("on_batch", on_batch)
        self.model = model
        memory = own_memory(model.device)
        if adapter_bytes is None:
            adapter_bytes = room_for_adapters(memory)
        adapter_bytes = whole_number("adapter_bytes", adapter_bytes, "of bytes")
        capacity = Capacity(
            model.spec,
            str(model.device),
            memory,
            sum(weight.nbytes for weight in model.parameters()) + packed_bytes(model),
            model.dtype.itemsize,
            adapter_bytes=adapter_bytes,
            prompts=PROMPTS_KEPT,
            captured=model.device.type == "cuda" and model.execution in CAPTURED,
        )

        def fixed(shape: tuple[int, int]) -> int:
            most = batch_rows(model.device.type, shape) if rows is None else rows
            return max(2, min(most, capacity.rows(shape) // 2 * 2))

        # Eager products of 16 bits on a CPU gave the bits of the fixed count twice, others later.
        rounded = model.device.type == "cpu" and model.dtype.itemsize == 2
        static = model.execution == "compiled" or (rounded and model.execution == "eager")
        self._rows = Rows(model.device.type, fixed, static=static)
        self._added = AddedWeights(model, adapter_bytes)
        self._embeddings = EmbeddingCache(model.spec.text.width)
        self._stages = ModelRunner(model, self._rows, capacity)
        self._loop = EngineLoop(self._stages, self._rows, model.device, on_batch)

    def submit(
        self, request: Request, *, on_step: OnStep | None = None, state: bytes | None = None
    ) -> Future[Rendered]:
        """Queues an image. `future.cancel()` takes effect between two steps.

        on_step: called on the engine's thread after each evaluation with (done, all); it must
        return at once. state: continue from there, of `Suspended`; the future's exception is a
        `StateError` if it is not of this request, model and kind of device. The future's exception
        is whatever rendering raised; other images go on. Raises `ValueError` for arguments of
        another type, and `EngineClosedError`.
        """
        if not isinstance(request, Request):
            raise ValueError(f"request is {request!r:.80}; expected an sd_core.Request")
        _check_callable("on_step", on_step)
        if state is not None and not isinstance(state, bytes):
            raise ValueError(f"state is a {type(state).__name__}; expected bytes, of Suspended")
        future: Future[Rendered] = Future()
        try:
            # Kept in a cache. On the engine's thread, the device would wait: some take 25 ms.
            _ = table_of(request, self.model.spec).numbers
            if self.model.told_guidance:
                unguided(request)
        except ValueError as error:  # of settings that do not go with this model
            future.set_exception(error)
            return future
        added = self._hold(request, future)
        embeddings = self._read(request, future)
        self._loop.put(
            InflightRequest(
                *(request, future, on_step, state, self.model.told_guidance),
                added=added,
                embeddings=embeddings,
            )
        )
        return future

    def _hold(self, request: Request, future: Future[Rendered]) -> Added:
        """An image's own weights, until its future ends; those that fail end it. The caller waits
        while they are read, and batches go on.
        """
        if not request.loras and request.vae is None:
            return Added()
        try:
            added = self._added.hold(request.loras, request.vae)
        except EngineClosedError:
            raise
        except Exception as error:
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return Added()
        future.add_done_callback(lambda _: self._added.give_back(added))
        return added

    def _read(self, request: Request, future: Future[Rendered]) -> Embeddings:
        """An image's embeddings; one that fails ends its future."""
        try:
            return () if future.done() else self._embeddings.get(request.embeddings)
        except Exception as error:
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return ()

    def suspend(self, futures: Iterable[Future[Rendered]], *, grace_s: float = 0.0) -> None:
        """Ends these images between two steps with a `Suspended` that holds where they were; those
        that never began are cancelled. What has only to be decoded still is.

        grace_s: images that seem to end within so long are left alone.
        """
        self._loop.suspend(futures, grace_s)

    def close(self, *, cancel: bool = False) -> None:
        """Finishes what was submitted (or, with cancel, drops it between steps) and stops."""
        self._added.close()
        self._loop.close(cancel=cancel)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(cancel=kind is not None)

    def rows_of(self, sampling: Sampling) -> int:
        """Row count of the exact batches that an image of this size runs in."""
        return self._rows.of(sampling.latent_shape)

    @property
    def alive(self) -> bool:
        """True while the engine's thread runs: until `close`, or an error that nobody foresaw."""
        return self._loop.alive

    def busy_s(self) -> float:
        """Seconds that the device spent on evaluations and decodes that have ended, by its own
        clock; over the seconds that passed, its busy share.
        """
        return self._stages.busy_s

    def captures(self) -> int:
        """Graphs that were captured: mostly one for each latent shape and row count."""
        return self._stages.captures

    @property
    def compiling(self) -> bool:
        """True while a program for a size that is new here is made: see `sd_core.execution`."""
        return self._stages.compiling

    def images_of(self, sampling: Sampling) -> int:
        """Images with guidance that fill a batch of this size."""
        return self.rows_of(sampling) // (1 if self.model.told_guidance else 2)

    def stalled_s(self) -> float:
        """Seconds since work last moved on (an image begun, a batch evaluated, an image decoded);
        0 without work, and while a program is compiled in its time.
        """
        progressed_at, compiling = self._loop.progressed_at, self.compiling
        if progressed_at is None:
            return 0.0
        seconds = time.monotonic() - progressed_at
        return max(0.0, seconds - MOST_COMPILE_S if compiling else seconds)

    def compile_ahead(self) -> None:
        """Compiles or captures, where the model is run so, what images of its native size need, and
        waits for it. Raises what an image of that size would fail with.
        """
        if self.model.execution not in CAPTURED:
            return
        side = self.model.spec.native_size
        # Some steps, so that all of a batch are in it at one time.
        sampling = Sampling(sampler="ddim", steps=4, width=side, height=side, seed=0)
        full = [Request("", sampling)] * self.images_of(sampling)
        for future in [self.submit(request) for request in full]:
            future.result()


def _check_callable(name: str, value: object) -> None:
    if value is not None and not callable(value):
        raise ValueError(f"{name} {value!r:.80} cannot be called; expected a function, or None")
