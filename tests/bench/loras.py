"""The cost of LoRA, as JSON: `python -m tests.bench.loras`. No peer renders images of different
LoRA in one batch, so each is compared with our own evaluation without, in the same run.

evaluation_s: of a model with random weights, one image with guidance, so 2 rows, in which every
layer has an adapter; keys and values of prompts and timesteps are made before, as the engine does.
tick_s: of the demo model's batch, while another thread loads an adapter of 150 MB.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import sd_core
from sd_core.demo import DEMO_SPEC
from sd_core.device import DTYPES, resolve_dtype
from sd_core.execution import make_ready
from sd_core.model.adapters import LowRank, Share, adapted
from sd_core.model.diffusion import LatentDiffusion
from sd_core.spec import EXECUTIONS, ModelSpec
from sd_core.weights.lora.names import layers_of
from tests.bench.evaluation import ROWS, Inputs, sdbatch
from tests.bench.measure import SPECS, interleaved, random_model
from tests.bench.wanted import Wanted, exit_code, judged

RANKS = (32, 128)
LOADED_BYTES = 150 * 10**6
WANTED = (
    Wanted("evaluation_s.ratio_rank_32", most=1.1),
    Wanted("tick_s.ratio_loading", most=2.0),
)


def shares(model: LatentDiffusion, rank: int) -> dict[str, tuple[Share, ...]]:
    """Adapters of every layer of the UNet that is evaluated at each step."""
    dtype = model.dtype
    generator = torch.Generator().manual_seed(rank)
    made_before = (".attn2.to_k", ".attn2.to_v", "time_embed.", ".emb_layers.")
    found = {}
    for (component, name), (out, *into) in layers_of(model.spec)[1].items():
        if component == "unet" and not any(part in f"{name}" for part in made_before):
            wide = into[:1] if math.prod(into[1:]) == 1 else into
            down = torch.randn(rank, *wide, generator=generator) / math.prod(wide) ** 0.5
            up = torch.randn(out, rank, generator=generator) / 100
            low_rank = LowRank(down.to(dtype), up.to(dtype), 1.0)
            found[name] = (Share(model.unet.adapters[name].lay_out(low_rank), 1.0),)
    return found


def evaluations(spec: ModelSpec, dtype: torch.dtype, execution: str, runs: int) -> dict[str, float]:
    """Seconds without and with each rank, and how many times those without."""
    model = make_ready(random_model(spec, dtype), execution)
    evaluate, _ = sdbatch(model, Inputs(spec))
    layers = {rank: shares(model, rank) for rank in RANKS}

    def with_rank(rank: int) -> Any:
        each = [(slice(row, row + 1), layers[rank]) for row in range(ROWS)]
        with adapted(model.unet.adapters, each):
            return evaluate()

    calls: dict[str, Any] = {"without": evaluate}
    calls |= {f"rank_{rank}": lambda rank=rank: with_rank(rank) for rank in RANKS}
    seconds = interleaved(calls, runs)
    ratios = {f"ratio_{n}": s / seconds["without"] for n, s in seconds.items() if n != "without"}
    return {**seconds, **ratios}


def large_file(folder: Path) -> Path:
    """An adapter for the demo model of about `LOADED_BYTES`, in float32."""
    _, shapes = layers_of(DEMO_SPEC)
    unet = {name: shape for (part, name), shape in shapes.items() if part == "unet"}
    each = sum(shape[0] + math.prod(shape[1:]) for shape in unet.values())
    rank = LOADED_BYTES // 4 // each
    tensors = {}
    for name, (out, *into) in unet.items():
        layer = f"lora_unet_{name.replace('.', '_')}"
        ones = [1] * len(into[1:])
        tensors[f"{layer}.lora_down.weight"] = torch.zeros(rank, *into)
        tensors[f"{layer}.lora_up.weight"] = torch.zeros(out, rank, *ones)
    path = folder / "large.safetensors"
    save_file(tensors, path)
    return path


def ticks() -> dict[str, float]:
    """Median and longest seconds between two batches; the longest while an adapter is loaded."""
    times: list[float] = []
    sampling = sd_core.Sampling(width=128, height=128, steps=1000, guidance=2.0)
    plain = sd_core.Request("a red circle", sampling)
    with tempfile.TemporaryDirectory() as folder:
        lora = sd_core.Lora.of(large_file(Path(folder)))
        model = sd_core.make_ready(sd_core.load_model("demo"))
        on_batch = lambda batch: times.append(time.perf_counter())  # noqa: E731
        with sd_core.Engine(model, on_batch=on_batch) as engine:
            futures = [engine.submit(plain) for _ in range(8)]
            while len(times) < 50:
                time.sleep(0.01)
            begin = time.perf_counter()
            brought = sd_core.Request("a red circle", sampling, loras=(lora,))
            futures.append(engine.submit(brought))
            loaded = time.perf_counter()
            for future in futures:
                future.cancel()
    pairs = list(itertools.pairwise(times))
    calm = statistics.median(end - start for start, end in pairs[10:] if end < begin)
    loading = [end - start for start, end in pairs if end > begin and start < loaded]
    longest = max(loading)
    return {
        "calm_median": calm,
        "loading_longest": longest,
        "loading_ticks": len(loading),
        "load": loaded - begin,
        "ratio_loading": longest / calm,
    }


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SPECS, default="v1")
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto")
    parser.add_argument("--execution", choices=EXECUTIONS, default="auto")
    parser.add_argument("--runs", type=int, default=5, help="of each")
    parser.add_argument("--check", action="store_true", help="exit code 1 if not as wanted")
    args = parser.parse_args()
    dtype = resolve_dtype(args.dtype, torch.device("cpu"))
    report: dict[str, Any] = {
        "model": args.model,
        "dtype": str(dtype).removeprefix("torch."),
        "evaluation_s": evaluations(SPECS[args.model], dtype, args.execution, args.runs),
        "tick_s": ticks(),
    }
    report = judged(report, WANTED)
    print(json.dumps(report, indent=2))
    return exit_code(report, check=args.check)


if __name__ == "__main__":
    sys.exit(main())
