"""The engine on a stand-in for CUDA: no waits, captured graphs, bounded lead, lost memory."""

from __future__ import annotations

import dataclasses
import sys
import threading
from concurrent.futures import Executor, Future
from types import SimpleNamespace

import pytest
import torch
import torch._inductor.config

from sd_core.device import device_kind, own_memory, release_memory
from sd_core.engine import held_files, model_runner
from sd_core.engine.added import Added, AddedWeights
from sd_core.engine.batch_rows import CHECKS, Rows
from sd_core.engine.engine import Engine
from sd_core.engine.inflight import InflightRequest
from sd_core.engine.loop import EngineLoop
from sd_core.engine.memory import Capacity
from sd_core.engine.model_runner import ModelRunner
from sd_core.engine.prompts import EncodedPrompts
from sd_core.engine.request import Batch, Lora, Request
from sd_core.engine.snapshot import StateError
from sd_core.execution import make_ready, run_as
from sd_core.gpu.graphs import Graphs
from sd_core.gpu.pace import pace_of
from sd_core.prompt.conditions import Condition, PromptReader
from sd_core.sampler_table import SAMPLERS
from sd_core.transfer import AHEAD, CopyOut, Upload, to_device
from tests.sd_core.engine.test_engine import request
from tests.sd_core.gpu import stand_in
from tests.sd_core.gpu.stand_in import CUDA, Far
from tests.sd_core.lora_files import lora_file, lora_tensors
from tests.sd_core.small import LEVEL, ODD, numbers, small_model

ROWS = 8
SHAPE = (8, 8)


@pytest.fixture(autouse=True)
def unproved(monkeypatch):
    """No row count but the fixed one ever serves, so that each test has one graph."""
    monkeypatch.setattr(Rows, "unchecked", lambda self, shape, used: None)


@pytest.fixture
def device(monkeypatch):
    with stand_in.cuda(monkeypatch) as device:
        yield device


def model_on(execution: str):
    model = small_model(ODD)
    stand_in.move(model)
    return make_ready(model, execution)


@pytest.fixture
def model(device):
    return model_on("auto")


class Run:
    """A model runner and the images in it, on this thread."""

    def __init__(self, model, rows: int = ROWS) -> None:
        capacity = Capacity(model.spec, "cuda:0", 2**40, 0, 4)
        self.runner = ModelRunner(model, Rows("cuda", lambda shape: rows), capacity)
        self.flights: list[InflightRequest] = []
        self._arrived = 0

    def start(self, request: Request, added: Added | None = None) -> InflightRequest:
        self._arrived += 1
        flight = InflightRequest(
            request, Future(), None, added=added or Added(), arrived=self._arrived
        )
        self.runner.start(flight)
        self.flights.append(flight)
        return flight

    def tick(self) -> None:
        shape = self.flights[0].shape
        self.runner.evaluate([f for f in self.flights if f.shape == shape])

    def finish(self) -> list[torch.Tensor]:
        flights = list(self.flights)
        while self.flights:
            self.tick()
            for flight in [f for f in self.flights if f.flying.done]:
                self.runner.leave(flight)
                self.flights.remove(flight)
        return [flight.flying.latents.near for flight in flights]


MIXED = [
    request(sampler="dpmpp_2m", steps=5, seed=1),
    request("a star", sampler="euler_a", steps=7, seed=2, guidance=1.0),
    request(sampler="plms", steps=4, seed=3),
    request(sampler="lms", steps=6, seed=4, guidance=1.0),
]


CHANGED = [
    request(sampler="ddim", steps=11, seed=5, pag_scale=3.0),
    request("a star", sampler="ddim", steps=11, seed=6, freeu="1.5 1.6 0.9 0.2", guidance=1.0),
]
"""Images with changes of rows, which are captured once their batch came often."""


def test_auto_is_graphed_on_cuda_and_float32_is_float32(model):
    assert model.execution == "graphed"
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_kernels_of_our_own_are_part_of_what_a_state_goes_on_with(device, monkeypatch):
    fused = []
    blocks = SimpleNamespace(fuse=fused.append)
    monkeypatch.setitem(sys.modules, "sd_core.gpu.fused_blocks", blocks)
    kinds = []
    for works in (False, True):
        monkeypatch.setattr("sd_core.execution.works", lambda *_, works=works: works)
        model = model_on("auto")
        kinds.append(Run(model).runner._kind(MIXED[0]))
    assert fused == [model.unet, model.vae]
    assert len(set(kinds)) == 2


def test_inductor_chooses_kernels_by_no_clock_on_cuda(device, monkeypatch):
    monkeypatch.setattr(torch._inductor.config, "deterministic", False)
    model = small_model(ODD)
    stand_in.move(model)
    run_as(model, "compiled", None)  # compiles with the first image only
    assert torch._inductor.config.deterministic


@pytest.mark.parametrize("execution", ["eager", "graphed"])
def test_no_step_waits_for_the_device(device, execution):
    """Nor does the start of an image. The capture does, once for each row count."""
    run = Run(model_on(execution))
    for sampler in SAMPLERS[:3]:
        run.start(request(sampler=sampler, steps=20, seed=5))
    for one in CHANGED:
        run.start(one)
    run.tick()
    run.runner.ended(wait=True)
    device.waits.clear()
    run.start(request("never seen", sampler="euler_a", steps=20))
    run.start(request("another", pag_scale=2.0, freeu="1.2 1.3 1 1", apg="0 2 -0.5", steps=20))
    for _ in range(6):
        run.tick()
    assert device.waits == []


def test_waits_would_be_seen(device):
    there = torch.zeros(3, device=CUDA)
    there.sum().item()
    there.to("cpu")
    there.copy_(torch.ones(3))
    torch.ones(3).to(CUDA)
    there.copy_(torch.ones(3).pin_memory())
    assert len(device.waits) == 5
    to_device(torch.ones(3), CUDA)
    CopyOut(there)
    assert len(device.waits) == 5
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(3)


def test_what_leaves_is_copied_beside_the_work(device):
    there = torch.arange(3.0, device=CUDA)
    device.launches.clear()
    copy = CopyOut(there)
    assert device.launches == ["wait_stream", "copy_"]
    assert len(there.near.streams) == 1  # so long its memory is not another tensor's
    assert copy.ready
    assert copy.result()[0].tolist() == [0.0, 1.0, 2.0]


def test_a_captured_step_gives_the_bits_of_an_eager_one(device):
    found = []
    for execution in ("eager", "graphed"):
        run = Run(model_on(execution))
        for one in MIXED:
            run.start(one)
        found.append(run.finish())
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert device.replays >= 7


def test_changes_of_rows_are_captured_and_give_the_bits_of_an_eager_step(device):
    """Projected guidance is another at each step, and is never captured."""
    projected = request(sampler="ddim", steps=11, seed=7, apg="0 2 -0.5")
    for requests, captured in ((CHANGED, True), ([*CHANGED, projected], False)):
        found = []
        for execution in ("eager", "graphed"):
            device.replays = 0
            run = Run(model_on(execution))
            for one in requests:
                run.start(one)
            found.append(run.finish())
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
        assert (device.replays > 0) == captured


def test_a_graph_of_rescaled_guidance_serves_any_scale(device):
    run = Run(model_on("graphed"))
    for guidance in (5.0, 6.0, 7.0):
        run.start(request(sampler="ddim", steps=11, guidance=guidance, guidance_rescale=0.7))
        run.finish()
    assert run.runner.captures == 1


def test_a_smaller_count_is_proved_and_then_captured(device, monkeypatch):
    monkeypatch.undo()
    with stand_in.cuda(monkeypatch):
        run = Run(model_on("auto"))
        run.start(request(steps=8, sampler="ddim"))
        rows = []
        for _ in range(8):
            run.tick()
            rows += [batch.rows for batch in run.runner.ended(wait=True)]
        counts = [ROWS] * CHECKS
        assert rows[: len(counts)] == counts
        assert set(rows) <= {ROWS, 2}
        assert run.runner.captures == 1  # of the count that serves


def test_a_mask_has_a_graph_of_its_own(device):
    found = []
    for execution in ("eager", "graphed"):
        run = Run(model_on(execution))
        run.start(request(sampler="dpmpp_2m", steps=6))
        run.tick()
        run.start(request(init=True, mask=True, sampler="euler_a", steps=6))
        found.append(run.finish())
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert run.runner._graphs.captured == 2


def test_a_step_is_one_launch_beside_what_it_is_told(model, device):
    run = Run(model)
    for one in MIXED[:2]:
        run.start(one)
    run.tick()
    device.launches.clear()
    run.tick()
    assert device.launches.count("replay") == 1
    # The numbers, the noise, where the timesteps are, and two gathers.
    assert sum(name in ("copy_", "index_select") for name in device.launches) <= 5
    assert len(device.launches) < 40


def test_the_host_is_a_few_steps_ahead_and_seconds_are_the_devices(model, device):
    run = Run(model)
    run.start(request(sampler="ddim", steps=6))
    ended: list[Batch] = []
    for tick in range(6):
        run.tick()
        ended += run.runner.ended()
        assert len(ended) == max(0, tick + 1 - AHEAD)
    ended += run.runner.ended(wait=True)
    assert ended == [Batch(2, ROWS, 0.001)] * 6


@pytest.mark.parametrize("kind", ["long", "parts"])
def test_long_and_several_prompts_are_captured_once_they_stay(device, monkeypatch, kind):
    """Graphs hold addresses of long contexts, and the weights of several prompts."""
    prompts = {"long": ("cat " * 80, "dog " * 90), "parts": ("a :0.5 AND b", "a :0.7 AND b")}
    monkeypatch.setattr(model_runner, "CAPTURE_AFTER", 2)
    found, captures, replays = [], [], []
    for execution in ("eager", "graphed"):
        device.replays = 0
        run = Run(model_on(execution))
        pixels = []
        for number, prompt in enumerate(prompts[kind]):
            run.start(request("a star", steps=5, seed=5))
            run.start(request(prompt, steps=5, seed=number, syntax="a1111", sampler="ddim"))
            pixels += run.finish()
        found.append(pixels)
        captures.append(run.runner.captures)
        replays.append(device.replays)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    # Long ones take the place of another in the same buffers; other weights are another program.
    assert captures == [0, 3 if kind == "parts" else 2]
    assert replays[1] >= 6


class OnThisThread(Executor):
    """Does its tasks at once: the stand-in for a device is one for this thread alone."""

    def __init__(self, _: str) -> None: ...

    def submit(self, task, /, *args, **options) -> Future:
        future: Future = Future()
        future.set_result(task(*args, **options))
        return future


def test_adapters_are_read_where_they_are_and_captured_once_they_stay(
    device, monkeypatch, tmp_path
):
    monkeypatch.setattr(model_runner, "CAPTURE_AFTER", 2)
    monkeypatch.setattr(held_files, "low_priority_thread", OnThisThread)
    path = lora_file(tmp_path, lora_tensors(ODD, 1))
    found, captures = [], []
    for execution in ("eager", "graphed"):
        run = Run(model_on(execution))
        cache = AddedWeights(run.runner.model, 2**30)
        pixels = []
        for weight in (0.8, -0.5):
            run.start(request("a star", steps=5, seed=5))
            run.start(request(steps=5, seed=1), cache.hold([Lora.of(path, weight)]))
            pixels += run.finish()
        found.append(pixels)
        captures.append(run.runner.captures)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert torch.equal(found[0][0], found[0][2])  # the one without notices nothing
    assert not torch.equal(found[0][1], found[0][3])
    assert captures == [0, 2]  # a program for each set


def told(*prompts: str) -> list[Condition]:
    reader = PromptReader("plain", 4, "chunk", "a1111", 1)
    return [reader.negative(prompt) for prompt in prompts]


def context_of(prompts: EncodedPrompts, prompt: str):
    """Keys and values for each attention, of a short prompt."""
    (((_, (context,)),),) = prompts.get(told(prompt))
    return context


class TestPrompts:
    def test_a_prompt_is_the_same_whatever_it_is_encoded_with(self, model):
        alone = context_of(EncodedPrompts(model), "a star")
        together = EncodedPrompts(model)
        waiting = told(*[f"picture {n}" for n in range(7)], "a star", "a ring")
        together.encode_ahead([(waiting, None, ())])
        for one, other in zip(alone, context_of(together, "a star"), strict=True):
            assert all(torch.equal(a.near, b.near) for a, b in zip(one, other, strict=True))

    def test_only_whole_batches_are_encoded_ahead_and_waited_for_once(self, model, device):
        prompts = EncodedPrompts(model)
        device.launches.clear()
        prompts.encode_ahead([(told("one", "two"), None, ())])
        assert not device.launches
        ahead = told(*[f"picture {n}" for n in range(20)])
        prompts.encode_ahead([(ahead, None, ())])
        device.launches.clear()
        prompts.get(ahead[:3])
        prompts.get(ahead[3:8])
        assert device.launches == ["wait_event"]
        assert device.waits == []
        prompts.get(told("one"))  # a batch of its own
        assert device.launches.count("wait_event") == 2

    def test_what_fails_ahead_is_told_by_the_image_that_wants_it(self, model, monkeypatch):
        prompts, ahead = EncodedPrompts(model), told(*[f"picture {n}" for n in range(8)])
        with monkeypatch.context() as patch:

            def short(chunks):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

            patch.setattr(model, "encode_chunks", short)
            prompts.encode_ahead([(ahead, None, ())])
            with pytest.raises(torch.OutOfMemoryError):
                prompts.get(ahead[:1])
        assert len(prompts.get(ahead)) == 8

    def test_what_is_freed_may_still_be_read_by_the_main_work(self, model):
        (keys, values), *_ = context_of(EncodedPrompts(model), "a star")
        for part in (keys, values):
            assert part.near.streams == [torch.cuda.current_stream()]
            assert part.near.untyped_storage().nbytes() == part.near.nbytes

    def test_the_engine_looks_ahead(self, device, monkeypatch):
        model = model_on("auto")
        encode, sizes = model.encode_chunks, []

        def counted(chunks):
            sizes.append(len(set(chunks)))
            return encode(chunks)

        monkeypatch.setattr(model, "encode_chunks", counted)
        asked = [request(f"picture {n}", steps=4, seed=n) for n in range(12)]
        serve = EngineLoop._serve
        ready = threading.Event()

        def serve_here(loop: EngineLoop) -> None:
            assert ready.wait(60)
            with device:
                serve(loop)

        monkeypatch.setattr(EngineLoop, "_serve", serve_here)
        with Engine(model, rows=2) as engine:
            futures = [engine.submit(one) for one in asked]
            ready.set()
            for future in futures:
                future.result(timeout=120)
        assert max(sizes) == 8
        assert len(sizes) <= 6


class TestMemory:
    def test_no_room_for_a_graph_is_no_failure(self, model, device):
        run = Run(model)
        calm = Run(model)
        for one in MIXED:
            run.start(one)
            calm.start(one)
        device.capture_error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        run.tick()
        run.tick()
        assert (run.runner._graphs.captured, run.runner._graphs.refused) == (0, 1)
        assert device.replays == 0
        device.capture_error = None
        wanted = calm.finish()
        assert all(torch.equal(*pair) for pair in zip(run.finish(), wanted, strict=True))

    def test_graphs_give_their_memory_back_before_rows_are_halved(self, model, device, monkeypatch):
        run = Run(model)
        for one in MIXED:
            run.start(one)
        run.tick()
        assert run.runner._graphs._graphs
        denoise, calls = model.denoise, []

        def short(latents, timesteps, context):
            calls.append(len(latents))
            if len(latents) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return denoise(latents, timesteps, context)

        monkeypatch.setattr(model, "denoise", short)
        run.runner._graphs.forget()  # so that it is captured again, which has no room
        run.tick()
        assert calls == [8, 8, 4, 4]
        assert "empty_cache" in device.launches
        assert not any(flight.exact for flight in run.flights)

    def test_what_others_hold_is_not_ours(self, device):
        assert own_memory(CUDA) == 61 * 2**30
        release_memory(CUDA)
        assert device.launches == ["empty_cache"]

    def test_batches_of_many_shapes_take_turns(self, model, monkeypatch):
        """Their memory, and that of their graphs, is bounded; nothing is lost."""
        monkeypatch.setattr("sd_core.engine.model_runner.BATCHES_KEPT", 2)
        sides = [64, 72, 80]
        asked = [request(sampler="dpmpp_2m", steps=3, width=side) for side in sides]
        alone = []
        for one in asked:
            run = Run(model)
            run.start(one)
            alone += run.finish()
        run = Run(model)
        flights = [run.start(one) for one in asked]
        for _ in range(3):
            for flight in flights:
                run.runner.evaluate([flight])
        assert len(run.runner._batches) == 2
        assert len(run.runner._graphs._graphs) == 2
        for flight, wanted in zip(flights, alone, strict=True):
            assert torch.equal(flight.flying.latents.near, wanted)


class TestGraphs:
    def test_the_least_recently_used_one_goes_first(self, device, monkeypatch):
        monkeypatch.setattr("sd_core.gpu.graphs.KEPT", 2)
        graphs: Graphs[int] = Graphs(CUDA)
        total = torch.zeros(1, device=CUDA)

        def run(key: int) -> None:
            assert graphs.run(key, lambda: total.add_(key), lambda: None)

        for key in (1, 2, 1, 3, 1, 2):
            run(key)
        assert graphs.captured == 4
        assert total.near.item() == 10

    def test_a_capture_executes_nothing(self, device):
        graphs: Graphs[int] = Graphs(CUDA)
        total = torch.zeros(1, device=CUDA)
        for _ in range(3):
            graphs.run(0, lambda: total.add_(1), lambda: None)
        assert total.near.item() == 3

    def test_what_would_wait_cannot_be_captured(self, device):
        graphs: Graphs[int] = Graphs(CUDA)
        total = torch.zeros(1, device=CUDA)
        assert not graphs.run(0, lambda: total.add_(total.sum().item()), lambda: None)
        assert graphs.refused == 1


def test_what_the_host_writes_is_not_what_the_device_still_reads(device):
    upload = Upload((2,), CUDA)
    hosts = []
    for value in range(AHEAD + 2):
        upload.host.fill_(value)
        hosts.append(upload.host.data_ptr())
        upload.send()
        assert upload.tensor.near.tolist() == [value] * 2
    assert len(set(hosts)) == AHEAD + 1
    assert device.waits == []


def test_a_pace_tells_what_has_ended_in_order(device):
    pace = pace_of(CUDA)
    ended = []
    for piece in range(5):
        pace.begin()
        ended += pace.end(piece)
    assert [piece for piece, _ in ended] == [0, 1, 2]
    assert [piece for piece, _ in pace.rest()] == [3, 4]


def test_a_saved_state_goes_on_only_on_such_a_card(model, device):
    run = Run(model)
    flight = run.start(request(sampler="lms", steps=9))
    for _ in range(4):
        run.tick()
    run.runner.leave(flight)
    state = run.runner.save(flight)
    again = InflightRequest(flight.request, Future(), None, state, arrived=9)
    Run(model).runner.start(again)
    assert torch.equal(again.flying.latents.near, flight.flying.latents.near)
    device.card.name = "Another"
    other = InflightRequest(flight.request, Future(), None, state, arrived=9)
    with pytest.raises(StateError, match="another request, model or arithmetic"):
        Run(model).runner.start(other)


def test_a_record_tells_the_card_and_the_libraries(device):
    said = device_kind(CUDA)
    assert said.startswith("cuda: Stand-in, capability 9.0, 132 multiprocessors, torch 2.")
    assert device_kind(torch.device("cpu")) == "cpu"


@pytest.fixture
def served(device, monkeypatch):
    """Engines' threads see the device as this one does."""
    serve = EngineLoop._serve

    def serve_here(loop: EngineLoop) -> None:
        with device:
            serve(loop)

    monkeypatch.setattr(EngineLoop, "_serve", serve_here)


@pytest.mark.usefixtures("served")
def test_a_full_batch_of_the_native_size_finds_all_captured(device, monkeypatch):
    compiling: list[bool] = []
    with Engine(model_on("auto"), rows=ROWS) as engine:
        run = Graphs.run

        def watched(graphs, *arguments):
            compiling.append(engine.compiling)
            return run(graphs, *arguments)

        monkeypatch.setattr(Graphs, "run", watched)
        engine.compile_ahead()
        assert (engine.captures(), compiling[0]) == (1, True)
        ahead = len(compiling)
        side = ODD.native_size
        full = [request(width=side, height=side, steps=3, seed=n) for n in range(ROWS // 2)]
        for future in [engine.submit(one) for one in full]:
            future.result(timeout=120)
        assert engine.captures() == 1
        assert len(compiling) > ahead  # the images of the job, too
        assert not any(compiling[1:])


@pytest.mark.usefixtures("served")
def test_whole_images_through_the_engine(device):
    """The engine's thread makes the device its own; images are those of a CPU, but for rounding."""
    batches: list[Batch] = []
    model = model_on("auto")
    asked = [*MIXED, dataclasses.replace(MIXED[0], exact=False)]
    with Engine(model, rows=ROWS, on_batch=batches.append) as engine:
        futures = [engine.submit(one) for one in asked]
        found = [future.result(timeout=120) for future in futures]
    assert f"set_device {CUDA}" in device.launches
    assert engine.captures() == 1
    assert engine.busy_s() > sum(batch.seconds for batch in batches)  # with the decodes
    assert all(batch.seconds > 0 for batch in batches)
    assert sum(batch.rows_used for batch in batches) == sum(
        one.evaluations * r.rows for one, r in zip(found, asked, strict=True)
    )
    with torch.utils._python_dispatch._disable_current_modes():
        plain = small_model(ODD)
        with Engine(plain, rows=ROWS) as engine:
            wanted = [engine.submit(one).result(timeout=120) for one in asked]
        for one, plain in zip(found, wanted, strict=True):
            assert not isinstance(one.latents, Far)
            assert (numbers(one) - numbers(plain)).abs().max() < 1e-3 + LEVEL
