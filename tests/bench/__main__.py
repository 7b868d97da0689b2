"""`make bench`: our speed beside a named peer's in the same run, as JSON on standard output.

Model evaluation: the UNet at v1 size, one 512×512 image with guidance (2 rows), bfloat16, seeded
random weights, eager; the peer is diffusers' `UNet2DConditionModel` as it comes. Runs alternate,
medians are compared. Peak memory: each side alone in a process of its own.

Then a mixed job beside diffusers (`tests.bench.inflight`), PNG files beside Pillow
(`tests.bench.files`), and what no peer has: the control plane, what an image costs beside its
rendering, and how well storing overlaps it (`control_plane`, `overhead`, `overlap`). Together some
twenty minutes; `--only peer` leaves them out.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

ROWS, LATENT_SIDE = 2, 64
MODULES = ("inflight", "files", "control_plane", "overhead", "overlap")


def ours() -> Callable[[], torch.Tensor]:
    from sd_core.spec import ModelSpec
    from sd_core.unet import UNet

    spec = ModelSpec().unet
    unet = empty(lambda: UNet(spec))
    x, t, context = inputs()
    return lambda: unet(x, t, context)


def diffusers() -> Callable[[], torch.Tensor]:
    from diffusers import UNet2DConditionModel

    unet = empty(lambda: UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8))
    x, t, context = inputs()
    return lambda: unet(x, t, context).sample


SIDES = {"sdbatch": ours, "diffusers": diffusers}


def empty(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """The module in bfloat16 with random weights, never in float32."""
    with torch.device("meta"):
        module = build()
    module = module.to(torch.bfloat16).to_empty(device="cpu").eval().requires_grad_(False)
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.normal_(0, 0.02)
    return module


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(ROWS, 4, LATENT_SIDE, LATENT_SIDE, dtype=torch.bfloat16)
    context = torch.randn(ROWS, 77, 768, dtype=torch.bfloat16)
    return x, torch.full((ROWS,), 500.0), context


@torch.inference_mode()
def time_evaluations(runs: int) -> dict[str, float]:
    evaluate = {name: build() for name, build in SIDES.items()}
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for call in evaluate.values():
        call()  # warm up
    for _ in range(runs):
        for name, call in evaluate.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


@torch.inference_mode()
def peak_memory(side: str) -> int:
    """Bytes, of this process: run it in a fresh one."""
    SIDES[side]()()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_fresh_process(side: str) -> int:
    command = [sys.executable, "-m", "tests.bench", "--peak", side]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compared(values: dict[str, float], digits: int) -> dict[str, float]:
    rounded = {name: round(value, digits) for name, value in values.items()}
    return rounded | {"ratio": round(values["sdbatch"] / values["diffusers"], 3)}


def of_module(name: str) -> object:
    """What a module of this package reports."""
    command = [sys.executable, "-m", f"tests.bench.{name}"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="of each side")
    parser.add_argument("--peak", choices=SIDES, help="print this side's peak memory in bytes")
    parser.add_argument("--only", choices=["peer"], help="leave out the other modules")
    args = parser.parse_args()
    if args.peak:
        print(peak_memory(args.peak))
        return
    peaks = {side: in_fresh_process(side) / 2**20 for side in SIDES}
    report: dict[str, object] = {
        "machine": {
            "cpus": torch.get_num_threads(),
            "torch": torch.__version__,
            "os": platform.platform(),
        },
        "evaluation_s": compared(time_evaluations(args.runs), 4),
        "peak_memory_mib": compared(peaks, 0),
    }
    if args.only is None:
        report |= {name: of_module(name) for name in MODULES}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
