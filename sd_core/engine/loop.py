"""The engine's thread, which owns the model.

At every tick it chooses the images of the next batch (`scheduler`), gives them one evaluation of
the UNet, moves each over one row of its table, and decodes the finished.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial

import torch
from torch import Tensor

from sd_core.device import use_device
from sd_core.engine.batch_rows import Rows
from sd_core.engine.inflight import InflightRequest, PendingOutput
from sd_core.engine.model_runner import ModelRunner
from sd_core.engine.request import EngineClosedError, OnBatch, Rendered, Suspended
from sd_core.engine.scheduler import ScheduledBatch, Scheduler

LOOK_AHEAD = 16
"""Waiting images whose prompts may be encoded beside the evaluations of others."""

MOST_WAIT_TICKS = 4
"""A finished image waits so many evaluations for others to be decoded with, where that helps."""


class EngineLoop:
    """Runs what it is given until it is closed. Any thread may call what has a name in public.

    stages: what the model does to images. rows: of the batches. on_batch: called on this thread
    after each evaluation.
    """

    def __init__(
        self,
        stages: ModelRunner,
        rows: Rows,
        device: torch.device,
        on_batch: OnBatch | None = None,
    ) -> None:
        self._stages = stages
        self._rows = rows
        self._device = device
        self._on_batch = on_batch
        self._lineup: Scheduler[InflightRequest] = Scheduler(rows.of)
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

    def put(self, flight: InflightRequest) -> None:
        """Queues an image, unless it has ended already. Raises `EngineClosedError`."""
        with self._lock:
            if self._closed:
                flight.future.cancel()
                raise EngineClosedError("the engine is closed")
            self._arrived += 1
            flight.arrived = self._arrived
            if not flight.future.done():
                self._inbox.put(flight)

    def suspend(self, futures: Iterable[Future[Rendered]], grace_s: float) -> None:
        """See `Engine.suspend`."""
        with self._lock:
            self._suspending |= dict.fromkeys(futures, grace_s)

    def close(self, *, cancel: bool) -> None:
        """Finishes what was put (or, with cancel, drops it between steps) and ends the thread."""
        with self._lock:
            already, self._closed = self._closed, True
        if cancel:
            self._drop = True
        if not already:
            self._inbox.put(None)
        self._thread.join()

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    @property
    def progressed_at(self) -> float | None:
        """When work last moved on, by `time.monotonic`; None without work."""
        return self._progressed_at

    # Everything below runs on this thread.

    def _run(self) -> None:
        try:
            use_device(self._device)
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


def _fail(flight: InflightRequest, error: BaseException) -> None:
    if not flight.future.done() and flight.future.set_running_or_notify_cancel():
        flight.future.set_exception(error)


def _report_step(flight: InflightRequest) -> None:
    trajectory = flight.flying
    if flight.on_step is not None:
        flight.on_step(trajectory.position, len(trajectory.table))
