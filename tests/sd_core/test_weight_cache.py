"""Laid-out weights that are kept: the same bits from them, and whole or not at all."""

from __future__ import annotations

import threading

import pytest
import torch

from sd_core import execution, loading, weight_cache
from sd_core.cpu.kernels import have_amx
from sd_core.cpu.mkldnn_tensor import can_rebuild
from sd_core.loading import load_model
from sd_core.weights.export import save_single_file
from tests.sd_core.cpu.kernel_checks import needs_kernels
from tests.sd_core.small import ODD, SMALL, small_model

pytestmark = pytest.mark.skipif(not can_rebuild(), reason="no such way into this torch")


@pytest.fixture
def path(tmp_path):
    save_single_file(small_model(SMALL), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads a model as a start does, and waits for what is written."""
    monkeypatch.setattr(loading, "LEAST_BYTES", 0)

    def load(path, dtype="float32", execution="auto"):
        model = load_model(
            path, device="cpu", dtype=dtype, execution=execution, cache=tmp_path / "cache"
        )
        for thread in threading.enumerate():
            if thread.name == "keep":
                thread.join()
        return model

    return load


@pytest.fixture
def brought(monkeypatch):
    """Names the models whose weights came from their files."""
    names = []
    bring = loading._bring

    def seen(model, *rest):
        names.append(model)
        bring(model, *rest)

    monkeypatch.setattr(loading, "_bring", seen)
    return names


def files(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "laid-out").iterdir())


def images(model):
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    context = model.encode_prompt(["a red circle", ""])
    noise = model.denoise(x, torch.tensor([981.0, 1.0]), context)
    other = model.denoise(x[:1, :, :9, :11], torch.tensor([1.0]), context[:1])
    return noise, other, model.decode(x), model.encode_image(model.decode(x))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_bits(path, load, brought, dtype):
    """Also at a size that wants another layout."""
    if loading.resolve_execution("auto", torch.device("cpu"), getattr(torch, dtype)) == "eager":
        pytest.skip("nothing is laid out in this type here")
    first = load(path, dtype)
    second = load(path, dtype)
    assert brought == [first]
    assert second.digest == first.digest
    for ours, theirs in zip(images(second), images(first), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_what_is_damaged_is_made_anew(path, load, brought, tmp_path, damage):
    load(path)
    (file,) = (tmp_path / "cache" / "laid-out").glob("*.pt")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"flip": content, "cut": content[:1000], "empty": b""}[damage])
    load(path)
    load(path)
    assert len(brought) == 2
    assert files(tmp_path) == [file.name, "lock"]


def test_other_weights_are_not_taken_for_these(path, load, brought, tmp_path):
    load(path)
    save_single_file(small_model(ODD), tmp_path / "other.safetensors")
    assert load(tmp_path / "other.safetensors").spec != load(path).spec
    assert len(brought) == 2
    assert len(files(tmp_path)) == 3


@needs_kernels
def test_for_each_way_of_running_its_own(path, load, brought, monkeypatch):
    """fused lays convolutions out for other kernels than packed, and other ones where AMX is."""
    load(path, "bfloat16", "fused")
    load(path, "bfloat16", "packed")
    monkeypatch.setattr(execution, "have_amx", lambda: not have_amx())
    monkeypatch.setattr(weight_cache, "have_amx", lambda: not have_amx())
    load(path, "bfloat16", "fused")
    assert len(brought) == 3


def test_other_code_lays_out_anew(path, load, brought, tmp_path, monkeypatch):
    code = tmp_path / "code.py"
    monkeypatch.setattr(weight_cache, "CODE", (code,))
    for text in ("one way", "one way", "another"):
        code.write_text(text)
        load(path)
    assert len(brought) == 2


def test_what_was_not_used_for_longest_goes_first(path, load, brought, tmp_path, monkeypatch):
    load(path)
    (first,) = (tmp_path / "cache" / "laid-out").glob("*.pt")
    monkeypatch.setattr(weight_cache, "MOST_BYTES", first.stat().st_size + 1)
    save_single_file(small_model(ODD), tmp_path / "other.safetensors")
    load(tmp_path / "other.safetensors")
    assert not first.exists()
    assert len(files(tmp_path)) == 2


def test_unfinished_files_are_cleared_away(path, load, tmp_path):
    folder = tmp_path / "cache" / "laid-out"
    folder.mkdir(parents=True)
    (folder / "left.part").write_bytes(b"half")
    load(path)
    assert not (folder / "left.part").exists()
    assert len(list(folder.glob("*.pt"))) == 1


def test_one_process_writes_at_a_time(path, load, tmp_path):
    folder = tmp_path / "cache" / "laid-out"
    folder.mkdir(parents=True)
    with weight_cache._locked(folder / "lock") as locked:
        assert locked
        load(path)
        assert files(tmp_path) == ["lock"]


def test_a_cache_that_cannot_be_made(path, load, tmp_path):
    """A start needs it not."""
    (tmp_path / "cache").touch()
    assert load(path).digest
    assert not any(thread.name == "keep" for thread in threading.enumerate())


def test_a_torch_that_has_no_way_for_it(path, load, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "can_rebuild", lambda: False)
    assert load(path).digest
    assert not (tmp_path / "cache").exists()
