"""The choice of device and number format."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sd_core.cpu import kernels
from sd_core.device import resolve_device, resolve_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpus(monkeypatch):
    """A function that makes torch see so many GPUs."""

    def see(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return see


def test_auto_takes_a_gpu_where_there_is_one(gpus):
    gpus(0)
    assert resolve_device("auto") == CPU
    gpus(2)
    assert resolve_device("auto").type == "cuda"
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device(CPU) == CPU


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "'cuda' is not here: torch sees 0 CUDA devices"),
        ("gpu", "'gpu' is unknown; expected auto, cpu, cuda or cuda:N"),
        ("meta", "'meta' is not supported; expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_devices_that_are_not_here(gpus, device, message):
    gpus(0)
    with pytest.raises(ValueError, match=message):
        resolve_device(device)


def test_gpu_number_out_of_range(gpus):
    gpus(2)
    with pytest.raises(ValueError, match="'cuda:2' is not here: torch sees 2 CUDA devices"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
        ({"avx512_f": True, "avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_type_on_a_cpu(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert resolve_dtype("auto", CPU) == expected


@pytest.mark.parametrize(("level", "used"), [("AVX512", True), ("AVX2", False), ("DEFAULT", False)])
def test_what_torch_was_told_to_do_without_is_not_used(monkeypatch, level, used):
    """By ATEN_CPU_CAPABILITY, or because this torch has no code for the CPU's instructions."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    amx = {"amx_bf16": True, "avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: amx, raising=False)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_init_amx"):
        monkeypatch.setattr(torch.cpu, name, lambda: True, raising=False)
    monkeypatch.setattr(kernels, "LIBRARY", Path(torch._C.__file__))  # one that can be loaded
    assert resolve_dtype("auto", CPU) is (torch.bfloat16 if used else torch.float32)
    assert (kernels._library.__wrapped__() is not None) is used
    assert kernels.have_amx.__wrapped__() is used


def test_auto_type_on_a_cpu_with_older_torch(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert resolve_dtype("auto", CPU) == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert resolve_dtype("auto", CPU) == torch.bfloat16
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert resolve_dtype("auto", CPU) == torch.float32


def test_named_types():
    assert resolve_dtype("auto", CUDA) == torch.float16
    assert resolve_dtype("bfloat16", CUDA) == torch.bfloat16
    assert resolve_dtype(torch.float32, CPU) == torch.float32
    for dtype in ("fp16", torch.int8, 16):
        with pytest.raises(ValueError, match="expected auto, float32, bfloat16, float16"):
            resolve_dtype(dtype, CPU)


MAPPING_FLAGS = """
import sd_core.model.diffusion
import torch

large = torch.empty(2**24)
inside = False
for line in open("/proc/self/smaps"):
    first = line.split()[0]
    if "-" in first:
        start, end = (int(part, 16) for part in first.split("-"))
        inside = start <= large.data_ptr() < end
    elif inside and first == "VmFlags:":
        print(line)
"""


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages"
)
@pytest.mark.parametrize(("chosen", "asked"), [(None, True), ("1", True), ("0", False)])
def test_large_tensors_ask_for_huge_pages_unless_told_not_to(chosen, asked):
    env = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    if chosen is not None:
        env["THP_MEM_ALLOC_ENABLE"] = chosen
    command = [sys.executable, "-c", MAPPING_FLAGS]
    told = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    name, *flags = told.split()
    assert name == "VmFlags:"
    assert ("hg" in flags) == asked
