"""Adapters, long prompts and other changes of rows in batches of a compiled model: found beside its
programs.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from sd_core.engine.engine import Batch, Engine
from sd_core.engine.request import Lora, Request
from sd_core.execution import make_ready
from sd_core.spec import Sampling
from tests.sd_core.lora_files import lora_file, lora_tensors
from tests.sd_core.small import ODD, numbers, small_model

LONG = ", ".join(f"word {n}" for n in range(40))


@pytest.fixture(scope="module")
def requests(tmp_path_factory) -> list[Request]:
    """Without any of it, with adapters of each kind, long prompts, both, and other changes."""
    folder = tmp_path_factory.mktemp("loras")
    kinds = {"all": {}, "text": {"parts": "text."}, "dora": {"parts": "unet.", "dora": True}}
    every, text, dora = (
        Lora.of(lora_file(folder, lora_tensors(ODD, seed, **kind), name))
        for seed, (name, kind) in enumerate(kinds.items())
    )

    def ask(prompt: str, *loras: Lora, **settings) -> Request:
        values = {"width": 64, "height": 64, "steps": 4, "sampler": "ddim"} | settings
        return Request(prompt, Sampling(**values), loras=loras)

    return [
        ask("a red circle", seed=1),
        ask("a blue star", seed=2, guidance=1.0, sampler="euler_a"),
        ask("a red circle", every, seed=3),
        ask("a moon", dora, seed=4, guidance=1.0),
        ask(LONG, seed=5),
        ask(LONG, every, dora, seed=6, steps=6, guidance=1.0),
        ask("a ring", text, seed=7),
        ask("a ring", seed=8, pag_scale=3.0, pag_layers="mid up.0"),
        ask("a moon", every, seed=9, pag_scale=3.0, freeu="1.5 1.6 0.9 0.2", guidance=1.0),
    ]


def rendered(engine: Engine, *requests: Request) -> list[torch.Tensor]:
    futures = [engine.submit(request) for request in requests]
    return [numbers(future.result(timeout=600)) for future in futures]


def test_what_a_program_finds_beside_it_is_what_is_added_to_rows(requests):
    """The arithmetic of eager, by a model that only takes the way of a compiled one."""
    eager, placed = small_model(ODD), small_model(ODD)
    placed.execution = "compiled"
    batches: list[Batch] = []
    with Engine(eager, rows=4) as one, Engine(placed, rows=4, on_batch=batches.append) as other:
        assert all(map(torch.equal, rendered(one, *requests), rendered(other, *requests)))
    assert max(batch.rows_used for batch in batches) == 4
    assert all(adapters.place is None for adapters in placed.unet.adapters.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, in its compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_programs_serve_all_batches_of_a_shape(requests, tmp_path, dtype):
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]
    model = make_ready(small_model(ODD).to(dtype), "compiled", cache=tmp_path)
    with Engine(model, rows=4) as engine:
        alone = [rendered(engine, request)[0] for request in requests]
        together = rendered(engine, *requests)
        backwards = rendered(engine, *requests[::-1])[::-1]
    for request, one, *others in zip(requests, alone, together, backwards, strict=True):
        assert all(torch.equal(one, other) for other in others), request
    assert counters["stats"]["unique_graphs"] == before + 3  # and the autoencoder's
    with Engine(small_model(ODD), rows=4) as engine:
        wanted = rendered(engine, *requests)
    least = 1e-2 if dtype is torch.float32 else 0.3
    assert all((x - y).abs().mean() < least for x, y in zip(alone, wanted, strict=True))
