"""Adapters of each image in one batch, against models whose weights were changed instead."""

from __future__ import annotations

import copy
import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sd_core.cpu.packing import can_pack
from sd_core.engine.added import AddedWeights
from sd_core.engine.engine import Batch, Engine
from sd_core.engine.request import EngineClosedError, Lora, Request, Suspended
from sd_core.execution import make_ready
from sd_core.model.diffusion import LatentDiffusion
from sd_core.spec import Sampling
from sd_core.weights.lora.read import LoraFile, read_lora
from tests.sd_core.engine.test_engine import BFLOAT16
from tests.sd_core.lora_files import lora_file, lora_tensors
from tests.sd_core.small import ODD, SMALL, numbers, small_model

WAYS = [("eager", "float32"), ("packed", "float32"), BFLOAT16]
if can_pack(torch.device("cpu"), torch.bfloat16):
    WAYS.append(("packed", "bfloat16"))


@pytest.fixture(scope="module", params=WAYS, ids=str)
def model(request):
    execution, dtype = request.param
    return make_ready(small_model(ODD).to(getattr(torch, dtype)), execution)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files for all layers, for the attentions of rank 8, for the text encoder, and DoRA."""
    folder = tmp_path_factory.mktemp("loras")
    kinds = {
        "all": {},
        "attention": {"rank": 8, "parts": "attn"},
        "text": {"parts": "text."},
        "dora": {"parts": "unet.", "dora": True},
    }
    return {
        name: lora_file(folder, lora_tensors(ODD, seed, **kind), name)
        for seed, (name, kind) in enumerate(kinds.items())
    }


def ask(prompt: str, *loras: Lora, **settings) -> Request:
    values = {"width": 64, "height": 64, "steps": 4, "seed": 1, "sampler": "ddim"} | settings
    return Request(prompt, Sampling(**values), loras=loras)


def rendered(engine: Engine, *requests: Request) -> list[torch.Tensor]:
    futures = [engine.submit(request) for request in requests]
    return [numbers(future.result(timeout=600)) for future in futures]


def changed(model: LatentDiffusion, file: LoraFile, weight: float) -> LatentDiffusion:
    """A copy with the adapter in its weights, by formula."""
    other = copy.deepcopy(model)
    for part, layers in ((other.unet, file.unet), (other.text, file.text)):
        for name, layer in layers.items():
            base = part.get_submodule(name).weight
            low = layer.scale * (layer.up.double() @ layer.down.double().flatten(1))
            wanted = base.double() + low.reshape(base.shape)
            if layer.magnitude is not None:
                rows = wanted.flatten(1)
                lengths = layer.magnitude.double()[:, None]
                wanted = (lengths * rows / rows.norm(dim=1, keepdim=True)).reshape(base.shape)
            base.copy_((base.double() + weight * (wanted - base.double())).float())
    return other


@pytest.mark.parametrize("weight", [1.0, 0.5, -0.7])
@pytest.mark.parametrize("kind", ["all", "attention", "text", "dora"])
def test_it_is_the_picture_of_a_model_with_the_adapter_in_its_weights(files, kind, weight):
    plain = small_model(ODD)
    merged = changed(plain, read_lora(files[kind], ODD), weight)
    request = ask("a red circle", Lora.of(files[kind], weight))
    with Engine(plain, rows=4) as engine:
        own, without = rendered(engine, request, dataclasses.replace(request, loras=()))
    with Engine(merged, rows=4) as engine:
        expected = engine.submit(dataclasses.replace(request, loras=())).result(timeout=600)
    latents = expected.latents.flatten()
    torch.testing.assert_close(own[: len(latents)], latents, rtol=0, atol=1e-4)
    assert (without - own).abs().max() > 1e-2  # it did something


def test_text_and_picture_have_weights_of_their_own(files):
    plain = small_model(ODD)
    file = read_lora(files["all"], ODD)
    merged = changed(plain, LoraFile(file.unet, {}), 0.8)
    merged = changed(merged, LoraFile({}, file.text), -0.3)
    with Engine(plain, rows=4) as engine:
        own = engine.submit(ask("a star", Lora.of(files["all"], 0.8, -0.3))).result(timeout=600)
    with Engine(merged, rows=4) as engine:
        expected = engine.submit(ask("a star")).result(timeout=600)
    torch.testing.assert_close(own.latents, expected.latents, rtol=0, atol=1e-4)


def mixed(files) -> list[Request]:
    every, attention, text, dora = (Lora.of(path) for path in files.values())
    half = dataclasses.replace(every, weight=0.5, text_weight=0.5)
    negative = dataclasses.replace(attention, weight=-0.6)
    return [
        ask("a red circle"),
        ask("a red circle", every, seed=2),
        ask("a blue star", half, seed=3, sampler="euler_a", guidance=3.0),
        ask("a ring", attention, text, seed=4, steps=6, sampler="dpmpp_2m"),
        ask("a ring", text, seed=5, guidance=1.0),
        ask("a moon", dora, seed=6, sampler="heun"),
        ask("a moon", negative, half, seed=7, sampler="lms", steps=5),
        ask(", ".join(f"word {n}" for n in range(40)), every, seed=8),
        ask("a blue star", seed=9, guidance=1.0),
    ]


def test_all_of_them_share_batches_and_never_notice_each_other(model, files):
    requests = mixed(files)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    batches: list[Batch] = []
    with Engine(model, rows=16, on_batch=batches.append) as engine:
        alone = [rendered(engine, one)[0] for one in requests]
        batches.clear()
        together = rendered(engine, *requests)
        assert max(batch.rows_used for batch in batches) >= 15
        backwards = rendered(engine, *requests[::-1])[::-1]
    for request, one, *others in zip(requests, alone, together, backwards, strict=True):
        assert all(torch.equal(one, other) for other in others), request.loras
    assert all(torch.equal(before[n], weight) for n, weight in model.named_parameters())


def test_sixteen_images_of_eight_sets_fill_their_batches(files):
    """Three sets are of two adapters; prompts have one to four chunks."""
    every, attention, text, dora = (Lora.of(path) for path in files.values())
    half = dataclasses.replace(every, weight=0.5)
    sets = [
        *((every,), (attention,), (text,), (dora,), (half,)),
        *((every, attention), (dora, text), (half, dora)),
    ]
    kinds = [
        {"sampler": "ddim", "steps": 24},
        {"sampler": "euler_a", "steps": 25, "guidance": 3.0},
        {"sampler": "dpmpp_2m", "steps": 23},
        {"sampler": "plms", "steps": 22, "guidance": 5.0},
    ]
    requests = [
        ask(
            ", ".join(f"word {n}" for n in range(2 + 24 * (number % 4))),
            *sets[number % 8],
            seed=number,
            **kinds[(number // 2) % 4],
        )
        for number in range(16)
    ]
    assert len({request.loras for request in requests}) == 8
    batches: list[Batch] = []
    model = make_ready(small_model(ODD), "packed")
    with Engine(model, rows=16, on_batch=batches.append) as engine:
        alone = [rendered(engine, request)[0] for request in requests]
        batches.clear()  # from now on, all adapters are there
        together = rendered(engine, *requests)
    used, rows = (sum(getattr(b, n) for b in batches) for n in ("rows_used", "rows"))
    assert used / rows >= 0.95
    for request, one, other in zip(requests, alone, together, strict=True):
        assert torch.equal(one, other), request.loras


@pytest.mark.slow
def test_a_thousand_switches_leave_the_weights_as_they_were(files):
    """There is room for one of two, so that each image's is read again."""
    loras = [Lora.of(files[kind]) for kind in ("all", "attention")]
    model = small_model(ODD)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    sizes = []
    for lora in loras:
        cache = AddedWeights(model, 2**30)
        cache.hold((lora,))
        sizes.append(cache.nbytes)
    requests = [ask("a ring", lora, steps=1, guidance=1.0) for lora in loras]
    with Engine(model, rows=4, adapter_bytes=max(sizes)) as engine:
        first = rendered(engine, *requests)
        for _ in range(500):
            last = rendered(engine, *requests)
    assert all(map(torch.equal, first, last))
    assert all(torch.equal(before[n], weight) for n, weight in model.named_parameters())


def test_close_to_float32_in_every_way_of_running(model, files):
    request = ask("a red circle", Lora.of(files["all"]), Lora.of(files["dora"], 0.5))
    with Engine(small_model(ODD), rows=4) as engine:
        expected, without = rendered(engine, request, dataclasses.replace(request, loras=()))
    with Engine(model, rows=4) as engine:
        own = rendered(engine, request)[0]
    difference = (own - expected).abs().mean()
    assert difference < 0.2 * (without - expected).abs().mean()


@pytest.mark.parametrize("way", [BFLOAT16], ids=str)
def test_close_in_kernels_of_our_own_too(tmp_path, way):
    """Sizes that suit these, for images large enough for Winograd's algorithm."""
    execution, dtype = way
    path = lora_file(tmp_path, lora_tensors(SMALL, 1))
    dora = lora_file(tmp_path, lora_tensors(SMALL, 2, parts="unet.", dora=True), "dora")
    model = make_ready(small_model(SMALL).to(getattr(torch, dtype)), execution)
    request = ask("a red circle", Lora.of(path), Lora.of(dora, 0.5), width=128, height=128)
    with Engine(small_model(SMALL), rows=2) as engine:
        expected, without = rendered(engine, request, dataclasses.replace(request, loras=()))
    with Engine(model, rows=2) as engine:
        own = rendered(engine, request)[0]
    assert (own - expected).abs().mean() < 0.2 * (without - expected).abs().mean()


@pytest.mark.parametrize("way", [BFLOAT16], ids=str)
def test_rows_in_one_call_of_kernels_of_our_own_never_notice_each_other(tmp_path, way):
    """Neighbours of one set, of others and of none, also where batches move them."""
    execution, dtype = way
    kinds = {"all": {}, "high": {"rank": 20}, "dora": {"parts": "unet.", "dora": True}}
    every, high, dora = (
        Lora.of(lora_file(tmp_path, lora_tensors(SMALL, seed, **kind), name))
        for seed, (name, kind) in enumerate(kinds.items())
    )
    model = make_ready(small_model(SMALL).to(getattr(torch, dtype)), execution)
    large = {"width": 128, "height": 128, "sampler": "ddim"}
    requests = [
        ask("a ring", seed=1, steps=2, **large),
        ask("a ring", every, seed=2, steps=3, **large),
        ask("a star", every, seed=3, guidance=1.0, **large),
        ask("a star", every, high, seed=4, steps=3, **large),
        ask("a moon", dora, seed=5, **large),
        ask("a moon", dora, dataclasses.replace(dora, weight=-0.3), seed=6, steps=2, **large),
        ask("a moon", every, seed=7, guidance=1.0, **large),
    ]
    with Engine(model, rows=12) as engine:
        alone = [rendered(engine, request)[0] for request in requests]
        together = rendered(engine, *requests)
        backwards = rendered(engine, *requests[::-1])[::-1]
    for request, one, *others in zip(requests, alone, together, backwards, strict=True):
        assert all(torch.equal(one, other) for other in others), request.loras


def test_weight_0_is_the_picture_without(model, files):
    request = ask("a red circle", Lora.of(files["all"], 0.0), Lora.of(files["dora"], 0.0))
    with Engine(model, rows=4) as engine:
        own, without = rendered(engine, request, dataclasses.replace(request, loras=()))
    assert torch.equal(own, without)


def test_suspended_and_continued_elsewhere(model, files):
    request = ask("a red circle", Lora.of(files["all"]), steps=12)
    with Engine(model, rows=4) as engine:
        expected = rendered(engine, request)[0]
        states = []

        def stop(done: int, _: int) -> None:
            if done == 5:
                engine.suspend([future])

        future = engine.submit(request, on_step=stop)
        with pytest.raises(Suspended) as stopped:
            future.result(timeout=600)
        states.append(stopped.value.state)
    with Engine(model, rows=4) as engine:
        other = ask("a red circle", Lora.of(files["attention"]), steps=12)
        with pytest.raises(ValueError, match="another version, or of another request"):
            engine.submit(other, state=states[0]).result(timeout=600)
        continued = engine.submit(request, state=states[0]).result(timeout=600)
    assert torch.equal(numbers(continued), expected)


def test_a_damaged_file_fails_its_images_and_no_other(files, tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(files["all"].read_bytes()[:1000])
    gone = dataclasses.replace(Lora.of(files["all"]), file=tmp_path / "gone.safetensors")
    swapped = dataclasses.replace(Lora.of(files["all"]), file=files["text"])
    with Engine(small_model(ODD), rows=4) as engine:
        futures = [
            engine.submit(ask("a star", lora))
            for lora in (Lora.of(damaged), gone, swapped, Lora.of(files["all"]))
        ]
        for future, words in zip(futures, ("damaged", "No such file", "sha256"), strict=False):
            with pytest.raises(ValueError, match=words):
                future.result(timeout=600)
        futures[-1].result(timeout=600)


class TestCache:
    def test_the_least_used_goes_and_comes_back(self, files):
        every, attention = Lora.of(files["all"]), Lora.of(files["attention"])
        model = small_model(ODD)
        wide = AddedWeights(model, 2**30)
        sizes = []
        for lora in (every, attention):
            wide.give_back(wide.hold([lora]))
            sizes.append(wide.nbytes - sum(sizes))
        cache = AddedWeights(model, max(sizes) + 1)
        for lora, size in zip((every, attention, every), (*sizes, sizes[0]), strict=True):
            cache.give_back(cache.hold([lora]))
            assert cache.nbytes == size

    def test_what_an_image_uses_stays(self, files):
        every, attention = Lora.of(files["all"]), Lora.of(files["attention"])
        model = small_model(ODD)
        cache = AddedWeights(model, 2**30)
        cache.hold([every])
        tight = AddedWeights(model, cache.nbytes + 1)
        held = tight.hold([every])
        with ThreadPoolExecutor(1) as beside:
            waiting = beside.submit(tight.hold, [attention])
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
            assert tight.nbytes == cache.nbytes
            tight.close()
            with pytest.raises(EngineClosedError):
                waiting.result(timeout=60)
        assert tight.hold([every]).loras is held.loras

    def test_two_that_have_no_room_together_are_refused_at_once(self, files):
        every, attention = Lora.of(files["all"]), Lora.of(files["attention"])
        model = small_model(ODD)
        wide = AddedWeights(model, 2**30)
        wide.hold([every, attention])
        tight = AddedWeights(model, wide.nbytes - 1)
        with pytest.raises(MemoryError, match="attention"):
            tight.hold([every, attention])
        tight.give_back(tight.hold([attention]))  # nothing of the first is held

    def test_who_waits_for_room_goes_on_when_an_image_ends(self, files):
        every, attention = Lora.of(files["all"]), Lora.of(files["attention"])
        model = small_model(ODD)
        wide = AddedWeights(model, 2**30)
        wide.hold([every])
        tight = AddedWeights(model, wide.nbytes)
        held = tight.hold([every])
        with ThreadPoolExecutor(1) as beside:
            waiting = beside.submit(tight.hold, [attention])
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
            tight.give_back(held)
            assert waiting.result(timeout=60).loras.key == (attention,)

    def test_one_that_is_too_large_says_how_large(self, files):
        with pytest.raises(MemoryError, match="room for 0 MiB"):
            AddedWeights(small_model(ODD), 1000).hold([Lora.of(files["all"])])
