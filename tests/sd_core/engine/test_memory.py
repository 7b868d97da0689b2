"""The predicted memory is that of the tensors which are alive together, and never less."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sd_core.demo import DEMO_SPEC
from sd_core.engine.memory import (
    Capacity,
    decode_bytes,
    evaluation_bytes,
    is_out_of_memory,
    prompt_bytes,
)
from sd_core.model.diffusion import LatentDiffusion
from sd_core.spec import ModelSpec
from tests.sd_core.small import ODD, SMALL

UNET = ModelSpec().unet
SPECS = {"v1": ModelSpec(), "demo": DEMO_SPEC, "small": SMALL, "odd": ODD}


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors made inside it; `peak` is the most at one time.

    model: its weights, of which views are made, do not count.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {weight.untyped_storage()._cdata for weight in model.parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


@pytest.fixture(autouse=True)
def _attention_keeps_no_scores(monkeypatch):
    """The kernels of CPUs and GPUs keep no table of scores; the one of `meta` does."""
    attend = "scaled_dot_product_attention"
    monkeypatch.setattr(torch.nn.functional, attend, lambda q, k, v: torch.empty_like(q))


def on_meta(spec: ModelSpec) -> LatentDiffusion:
    with torch.device("meta"):
        return LatentDiffusion(spec).eval().requires_grad_(False)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("shape", [(64, 64), (64, 96)])
def test_an_evaluation_needs_what_is_predicted(name, shape):
    spec, rows = SPECS[name], 2
    model = on_meta(spec)
    inputs = (
        torch.empty(rows, 4, *shape, device="meta"),
        torch.empty(rows, device="meta"),
        torch.empty(rows, 77, spec.unet.context_dim, device="meta"),
    )
    with torch.no_grad(), Alive(model) as alive:
        model.unet(*inputs)
    predicted = rows * evaluation_bytes(spec.unet, shape, 4)
    assert alive.peak <= predicted <= 1.8 * alive.peak


@pytest.mark.parametrize("name", SPECS)
def test_a_decode_needs_what_is_predicted(name):
    spec, shape = SPECS[name], (64, 64)
    model = on_meta(spec)
    with torch.no_grad(), Alive(model) as alive:
        model.vae.decode(torch.empty(1, 4, *shape, device="meta"))
    predicted = decode_bytes(spec.vae, shape, 4)
    assert alive.peak <= predicted <= 1.8 * alive.peak


@pytest.mark.parametrize("name", SPECS)
def test_prompts_need_what_is_predicted(name):
    spec = SPECS[name]
    projected = on_meta(spec).unet.project(torch.empty(1, 77, spec.unet.context_dim, device="meta"))
    assert prompt_bytes(spec, 4) == sum(keys.nbytes + values.nbytes for keys, values in projected)


def test_what_is_kept_leaves_room_for_fewer_rows():
    memory = ModelSpec(), "cuda:0", 6 * 2**30, 2 * 2**30, 2
    plain, prompts, captured = (
        Capacity(*memory),
        Capacity(*memory, prompts=64),
        Capacity(*memory, captured=True),
    )
    shape = (96, 96)
    assert plain.rows(shape) > prompts.rows(shape) > captured.rows(shape) >= 2
    decode = decode_bytes(ModelSpec().vae, shape, 2)
    left = captured.free_bytes - captured.rows(shape) * evaluation_bytes(UNET, shape, 2)
    assert left >= decode
    huge = (144, 144)  # one after the other fits, both at once do not
    plain.check(huge, 2)
    with pytest.raises(MemoryError):
        captured.check(huge, 2)


def test_an_image_that_cannot_fit_is_refused_with_both_figures():
    capacity = Capacity(ModelSpec(), "cuda:0", 4 * 2**30, 2 * 2**30, 2)
    capacity.check((64, 64), 2)
    assert capacity.rows((64, 64)) >= 2
    with pytest.raises(
        MemoryError, match=r"1536x1536 pixels needs about [2-9]\.\d GiB .* has 1\.6"
    ):
        capacity.check((192, 192), 2)


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_is_recognised(error, memory):
    assert is_out_of_memory(error) is memory
