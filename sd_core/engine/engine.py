"""In-flight batching: images of any sampler, step count and guidance share the device.

One thread owns the model. At every tick it chooses the images of the next batch (`scheduler`),
gives them one evaluation of the UNet, moves each over one row of its table, and decodes the
finished. An image is mostly two rows of the batch, one without guidance. It joins and leaves
between any two evaluations, so urgent work waits for one evaluation and one decode at most.

Batches of exact images are padded to a fixed row count for each latent shape, or to a smaller one
that was seen to give the same bits (`batch_rows`), and text and images are encoded and decoded at
fixed batch sizes. So an image's bytes are the same whatever it ran with.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial

from torch import Tensor

from sd_core.cpu.packing import packed_bytes
from sd_core.device import own_memory, use_device
from sd_core.engine.added import Added, AddedWeights
from sd_core.engine.batch_rows import MOST_ROWS, Rows, batch_rows
from sd_core.engine.embeddings import EmbeddingCache
from sd_core.engine.inflight import InflightRequest, PendingOutput, unguided
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
from sd_core.engine.scheduler import ScheduledBatch, Scheduler
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

LOOK_AHEAD = 16
"""Waiting images whose prompts may be encoded beside the evaluations of others."""

MOST_COMPILE_S = 1800.0
"""Seconds that compiling a program may take: minutes on a GPU, more on a busy CPU."""

MOST_WAIT_TICKS = 4
"""A finished image waits so many evaluations for others to be decoded with, where that helps."""


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
        self._lineup: Scheduler[InflightRequest] = Scheduler(fixed)
        self._on_batch = on_batch
        self._inbox: queue.SimpleQueue[InflightRequest | None] = queue.SimpleQueue()
        self._line: list[InflightRequest] = []  # not finished yet, waiting ones too
        self._landed: deque[tuple[int, InflightRequest]] = deque()  # to decode, since which tick
        self._leaving: deque[PendingOutput] = deque()  # decoded, on their way to the CPU
        self._ticks = 0
        self._step_s = 0.0  # of the last evaluation
        self._arrived = 0
        self._open = True
        self._closed = False
        self._drop = False
        self._suspending: dict[Future[Rendered], float] = {}  # with their grace
        self._progressed_at: float | None = None  # None while there is nothing to do
        self._lock = threading.Lock()  # of the inbox's order, `_closed` and `_suspending`
        self._thread = threading.Thread(target=self._run, name="sdbatch-engine", daemon=True)
        self._thread.start()

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
        with self._lock:
            if self._closed:
                future.cancel()
                raise EngineClosedError("the engine is closed")
            self._arrived += 1
            if not future.done():
                flight = InflightRequest(
                    *(request, future, on_step, self._arrived, state, self.model.told_guidance),
                    added=added,
                    embeddings=embeddings,
                )
                self._inbox.put(flight)
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
        with self._lock:
            self._suspending |= dict.fromkeys(futures, grace_s)

    def close(self, *, cancel: bool = False) -> None:
        """Finishes what was submitted (or, with cancel, drops it between steps) and stops."""
        with self._lock:
            already, self._closed = self._closed, True
        self._added.close()
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
        """Row count of the exact batches that an image of this size runs in."""
        return self._rows.of(sampling.latent_shape)

    @property
    def alive(self) -> bool:
        """True while the engine's thread runs: until `close`, or an error that nobody foresaw."""
        return self._thread.is_alive()

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
        progressed_at, compiling = self._progressed_at, self.compiling
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

    # Everything below runs on the engine's thread.

    def _run(self) -> None:
        try:
            use_device(self.model.device)
            self._serve()
        except BaseException as error:
            # Whatever went wrong in here, nobody may wait for ever.
            with self._lock:
                self._closed = True
            self._receive(block=False)
            for flight in self._everything():
                _fail(flight, error)
            raise
        finally:
            self._progressed_at = None

    def _serve(self) -> None:
        while self._open or self._busy:
            self._receive()
            if self._drop:
                for flight in self._everything():
                    flight.future.cancel()
                continue
            self._leave()
            choice = self._next_batch()
            if choice is None:
                self._report_batches(wait=True)
            self._deliver(wait=choice is None and not self._landed)
            if choice is not None:
                self._tick(choice)
            self._decode(wait=bool(self._line))

    @property
    def _busy(self) -> bool:
        return bool(self._line or self._landed or self._leaving)

    def _receive(self, *, block: bool = True) -> None:
        """Moves what was submitted into the line; blocks only when there is nothing to do."""
        while self._open:
            idle = not self._busy
            if idle and block:
                self._progressed_at = None
            try:
                flight = self._inbox.get(block=block and idle)
            except queue.Empty:
                return
            if idle:
                self._progressed_at = time.monotonic()
            if flight is None:
                self._open = False
            else:
                self._line.append(flight)

    def _everything(self) -> list[InflightRequest]:
        """Takes all flights out of the engine."""
        leaving = [flight for landing in self._leaving for flight in landing.flights]
        flights = [*self._line, *(flight for _, flight in self._landed), *leaving]
        self._line.clear()
        self._landed.clear()
        self._leaving.clear()
        return flights

    def _leave(self) -> None:
        """Takes out of the line who was cancelled, and saves who is to be suspended."""
        with self._lock:
            asked, self._suspending = self._suspending, {}
        if asked:
            # Groups take turns, so an image's own steps are that much further apart.
            step_s = self._step_s * len({flight.group for flight in self._line})
            for flight in self._line:
                grace_s = asked.get(flight.future)
                begun = flight.trajectory is not None
                if grace_s is not None and not (begun and flight.left * step_s < grace_s):
                    self._attempt(flight, self._suspend)
        for flight in self._line:
            if flight.future.done():
                self._stages.leave(flight)
        self._line = [flight for flight in self._line if not flight.future.done()]

    def _suspend(self, flight: InflightRequest) -> None:
        if flight.trajectory is not None and flight.trajectory.position:
            _fail(flight, Suspended(self._stages.save(flight)))
        elif flight.state is not None:
            _fail(flight, Suspended(flight.state))  # where it was when it came
        else:
            flight.future.cancel()

    def _attempt(self, flight: InflightRequest, action: Callable[[InflightRequest], None]) -> bool:
        """Runs one image's own work; its failure is its own and leaves the others alone."""
        try:
            action(flight)
        except Exception as error:
            _fail(flight, error)
            return False
        finally:
            self._progressed_at = time.monotonic()
        return True

    def _next_batch(self) -> ScheduledBatch[InflightRequest] | None:
        """Chooses until all chosen ones are ready. What arrives meanwhile may come before them."""
        while (choice := self._lineup.choose(self._line)) is not None:
            unready = next((f for f in choice.flights if f.trajectory is None), None)
            if unready is None:
                return choice
            if not self._attempt(unready, self._stages.start):
                self._line.remove(unready)
            elif unready.flying.done:  # an init image at strength 0
                self._land(unready)
            self._receive(block=False)
        return None

    def _tick(self, choice: ScheduledBatch[InflightRequest]) -> None:
        """Evaluate one batch; the next one is chosen after it."""
        try:
            self._stages.evaluate(choice.flights)
        except Exception as error:
            self._progressed_at = time.monotonic()
            if len(choice.flights) == 1:
                _fail(choice.flights[0], error)
                return
            # Nothing has moved, so each can have its evaluation alone; whose fault it is shows.
            for flight in choice.flights:
                self._tick(ScheduledBatch(choice.group, [flight]))
            return
        self._ticks += 1
        self._progressed_at = time.monotonic()
        self._lineup.served(choice, self._line)
        self._report_batches()
        for flight in choice.flights:
            flight.started = True
            self._attempt(flight, _report_step)
            if flight.flying.done and not flight.future.done():
                self._land(flight)
        self._stages.encode_ahead(self._lineup.coming(self._line, LOOK_AHEAD))

    def _report_batches(self, *, wait: bool = False) -> None:
        try:
            ended = self._stages.ended(wait=wait)
        except RuntimeError:
            return  # of the device; the copies of the images' pixels tell it too
        for batch in ended:
            self._step_s = batch.seconds
            if self._on_batch is not None:
                self._on_batch(batch)

    def _land(self, flight: InflightRequest) -> None:
        self._line.remove(flight)
        self._stages.leave(flight)
        self._landed.append((self._ticks, flight))

    def _decode(self, *, wait: bool) -> None:
        """Decodes what landed, until something more urgent arrives.

        wait: for more to decode together, if there is something else to do.
        """
        while self._landed:
            since, first = self._landed[0]
            alike = [flight for _, flight in self._landed if flight.decoded_as == first.decoded_as]
            size = self._rows.decoded(first.shape)
            padded = first.request.exact and len(alike) < size
            if padded and wait and self._ticks - since < MOST_WAIT_TICKS:
                return
            group = alike[:size]
            self._landed = deque(entry for entry in self._landed if entry[1] not in group)
            group = [flight for flight in group if not flight.future.done()]
            if group:
                self._decode_together(group)
            self._receive(block=False)
            if any(flight.priority > first.priority for flight in self._line):
                return

    def _decode_together(self, flights: list[InflightRequest]) -> None:
        try:
            self._leaving.append(self._stages.decode(flights))
        except Exception as error:
            if len(flights) == 1:
                _fail(flights[0], error)
            else:
                for flight in flights:
                    self._decode_together([flight])
        self._progressed_at = time.monotonic()

    def _deliver(self, *, wait: bool) -> None:
        """Hands over the pixels that have arrived. wait: for all that are on their way."""
        while self._leaving:
            landing = self._leaving[0]
            try:
                if not (wait or landing.copy.ready):
                    return
                arrived = landing.copy.result()
            except Exception as error:  # of the device, which tells late
                for flight in landing.flights:
                    _fail(flight, error)
            else:
                for flight, *own in zip(landing.flights, *arrived, strict=True):
                    self._attempt(flight, partial(self._hand_over, arrived=own))
            self._leaving.popleft()

    def _hand_over(self, flight: InflightRequest, *, arrived: Sequence[Tensor]) -> None:
        rendered = self._stages.rendered(flight, arrived)
        if flight.future.set_running_or_notify_cancel():
            flight.future.set_result(rendered)


def _check_callable(name: str, value: object) -> None:
    if value is not None and not callable(value):
        raise ValueError(f"{name} {value!r:.80} cannot be called; expected a function, or None")


def _fail(flight: InflightRequest, error: BaseException) -> None:
    if not flight.future.done() and flight.future.set_running_or_notify_cancel():
        flight.future.set_exception(error)


def _report_step(flight: InflightRequest) -> None:
    trajectory = flight.flying
    if flight.on_step is not None:
        flight.on_step(trajectory.position, len(trajectory.table))
