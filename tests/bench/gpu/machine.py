"""The machine, and what it can at most: rates of products and copies, arithmetic of the model."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sd_core.model.diffusion import LatentDiffusion
from sd_core.transfer import CopyOut
from tests.bench.gpu.bench import Bench


def machine(b: Bench) -> dict[str, Any]:
    """Sets the bench's limits, too."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "dtype": str(b.dtype).removeprefix("torch."),
    }
    if b.cuda:
        found |= _card(b)
    b.peak_tflops = _product_tflops(b)
    found["product_tflops"] = round(b.peak_tflops, 3)
    found["copy_tb_s"] = round(_copy_tb_s(b), 4)
    side = b.spec.native_size
    pixels = torch.rand(4, 3, side, side, device=b.device)
    found["copy_out_4_images_ms"] = b.ms(lambda: CopyOut(pixels).result())
    with torch.device("meta"):
        model = LatentDiffusion(b.spec).requires_grad_(False)
        contexts = model.unet.project(torch.empty(1, 77, b.spec.unet.context_dim))
        times = model.unet.embed(torch.empty(1))
        latents = torch.empty(1, 4, b.side, b.side)
        with FlopCounterMode(display=False) as counted:
            model.unet(latents, times, contexts)
        b.gflop_row = counted.get_total_flops() / 1e9
        with FlopCounterMode(display=False) as counted:
            model.vae.decode(latents)
        b.gflop_decode = counted.get_total_flops() / 1e9
    found["gflop_a_row"] = round(b.gflop_row, 2)
    found["gflop_a_decode"] = round(b.gflop_decode, 2)
    return found


def _product_tflops(b: Bench) -> float:
    n = 8192 if b.cuda else 512
    left, right = (torch.randn(n, n, device=b.device).to(b.dtype) for _ in range(2))
    return 2 * n**3 / b.ms(lambda: left @ right) / 1e9


def _copy_tb_s(b: Bench) -> float:
    """Bytes read and written."""
    source = torch.empty((2**30 if b.cuda else 2**22) // 4, device=b.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / b.ms(lambda: target.copy_(source)) / 1e9


def _card(b: Bench) -> dict[str, Any]:
    card = torch.cuda.get_device_properties(b.device)
    found: dict[str, Any] = {
        "gpu": card.name,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "memory_gib": round(card.total_memory / 2**30, 1),
        "free_gib": round(torch.cuda.mem_get_info()[0] / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    with contextlib.suppress(ImportError):
        import triton

        found["triton"] = triton.__version__
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit"]
        said = subprocess.run(
            [*asked, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        found["driver_clocks_power"] = said.stdout.strip()
    return found
