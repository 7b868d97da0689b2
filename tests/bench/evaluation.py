"""One model evaluation and one decode beside peers, as JSON: `python -m tests.bench.evaluation`.

One image at its native size with guidance, so 2 rows; the UNet with prompt and timesteps as the
engine gives them, embedded ahead. Peers: diffusers' modules as they come, and, where it is
installed, OpenVINO made from them. Random weights; runs take turns, medians are compared. The type
is what this CPU multiplies fastest, unless --dtype says otherwise.

`peak_memory_mib`: each side's evaluation alone in a process of its own. `relative_error`: of an
evaluation in bfloat16 or float16 against the same weights in float32, ours and diffusers' own.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from sd_core.device import DTYPES, resolve_dtype
from sd_core.execution import make_ready
from sd_core.model.diffusion import LatentDiffusion
from sd_core.spec import EXECUTIONS, LATENT_FACTOR, ModelSpec
from sd_core.weights.export import diffusers_unet_name, unet_config, vae_config
from tests.bench.measure import (
    SPECS,
    Call,
    compared,
    in_fresh_process,
    interleaved,
    peak_memory,
    random_model,
    random_module,
)
from tests.bench.wanted import Wanted, exit_code, judged

ROWS = 2
TIMESTEP = 500.0
SIDES = ("sdbatch", "diffusers", "openvino")
WANTED = (
    Wanted("evaluation_s.ratio_diffusers", most=0.6),
    Wanted("decode_s.ratio_diffusers", most=0.5),
)
WANTED_OPENVINO = (Wanted("evaluation_s.ratio_openvino", most=0.8),)


class Inputs:
    """Of one evaluation, float32, and of one decode. context: as the text tower makes it."""

    def __init__(self, spec: ModelSpec) -> None:
        generator = torch.Generator().manual_seed(1)
        side = spec.native_size // LATENT_FACTOR
        self.latents = torch.randn(ROWS, 4, side, side, generator=generator)
        self.timesteps = torch.full((ROWS,), TIMESTEP)
        shape = (ROWS, spec.text.length, spec.unet.context_dim)
        self.context = torch.randn(shape, generator=generator)


def peer_config(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def peer_unet(spec: ModelSpec, dtype: torch.dtype) -> nn.Module:
    config = peer_config(unet_config(spec))
    return random_module(lambda: UNet2DConditionModel.from_config(config), dtype)


def peer_vae(spec: ModelSpec, dtype: torch.dtype) -> nn.Module:
    config = peer_config(vae_config(spec))
    return random_module(lambda: AutoencoderKL.from_config(config), dtype)


def sdbatch(model: LatentDiffusion, inputs: Inputs) -> tuple[Call, Call]:
    """An evaluation, as the engine makes it, and a decode."""
    times = model.embed_timesteps(inputs.timesteps)
    context = model.project_context(inputs.context)
    return (
        lambda: model.denoise(inputs.latents, times, context),
        lambda: model.decode(inputs.latents[:1]),
    )


def diffusers(spec: ModelSpec, dtype: torch.dtype, inputs: Inputs) -> tuple[Call, Call]:
    unet, vae = peer_unet(spec, dtype), peer_vae(spec, dtype)
    latents, context = inputs.latents.to(dtype), inputs.context.to(dtype)
    return (
        lambda: unet(latents, inputs.timesteps, context).sample,
        lambda: vae.decode(latents[:1]).sample,
    )


class _Sample(nn.Module):
    """A UNet that returns a plain tensor, for OpenVINO."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        return self.unet(latents, timesteps, context, return_dict=False)[0]


class _Decode(nn.Module):
    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents, return_dict=False)[0]


def openvino(spec: ModelSpec, dtype: torch.dtype, inputs: Inputs) -> tuple[Call, Call]:
    """Compiled for this CPU, products in `dtype`, with static shapes."""
    import openvino as ov

    precision = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    core = ov.Core()

    def compiled(module: nn.Module, *example: Tensor) -> Call:
        shapes = [ov.PartialShape(list(tensor.shape)) for tensor in example]
        model = ov.convert_model(module, example_input=example, input=shapes)
        program = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
        arrays = [tensor.numpy() for tensor in example]
        return lambda: program(arrays)

    # One after the other, so that torch's modules are gone when all is compiled.
    evaluate = compiled(
        _Sample(peer_unet(spec, torch.float32)), inputs.latents, inputs.timesteps, inputs.context
    )
    return evaluate, compiled(_Decode(peer_vae(spec, torch.float32)), inputs.latents[:1])


def relative_error(spec: ModelSpec, dtype: torch.dtype, execution: str) -> dict[str, float]:
    """The same weights on both sides. Ours as it is run, the peer's as it comes."""
    inputs = Inputs(spec)
    exact = random_model(spec, torch.float32)
    ours = random_model(spec, torch.float32).to(dtype)
    names = {n: diffusers_unet_name(n, spec.unet.num_res_blocks) for n in exact.unet.state_dict()}
    peer = peer_unet(spec, torch.float32)
    peer.load_state_dict({names[n]: t for n, t in exact.unet.state_dict().items()})
    make_ready(ours, execution)
    wanted = exact.denoise(inputs.latents, inputs.timesteps, inputs.context)
    mine = ours.denoise(inputs.latents, inputs.timesteps, inputs.context)
    peer = peer.to(dtype)
    theirs = peer(inputs.latents.to(dtype), inputs.timesteps, inputs.context.to(dtype)).sample
    errors = {"sdbatch": mine, "diffusers": theirs.float()}
    return {n: ((e - wanted).norm() / wanted.norm()).item() for n, e in errors.items()}


def sides(
    names: list[str], spec: ModelSpec, dtype: torch.dtype, execution: str
) -> dict[str, tuple[Call, Call]]:
    inputs = Inputs(spec)
    calls: dict[str, tuple[Call, Call]] = {}
    for name in names:
        if name == "sdbatch":
            calls[name] = sdbatch(make_ready(random_model(spec, dtype), execution), inputs)
        else:
            calls[name] = {"diffusers": diffusers, "openvino": openvino}[name](spec, dtype, inputs)
    return calls


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SPECS, default="v1")
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto")
    parser.add_argument("--execution", choices=EXECUTIONS, default="auto")
    parser.add_argument("--runs", type=int, default=5, help="of each side")
    parser.add_argument("--without", choices=SIDES[1:], action="append", default=[])
    parser.add_argument("--peak", choices=SIDES, help="print this side's peak memory in bytes")
    parser.add_argument("--check", action="store_true", help="exit code 1 if not as wanted")
    args = parser.parse_args()
    spec = SPECS[args.model]
    dtype = resolve_dtype(args.dtype, torch.device("cpu"))
    if args.peak:
        sides([args.peak], spec, dtype, args.execution)[args.peak][0]()
        print(peak_memory())
        return 0
    names = [name for name in SIDES if name not in args.without]
    if find_spec("openvino") is None and "openvino" in names:
        names.remove("openvino")
    same = ["--model", args.model, "--dtype", args.dtype, "--execution", args.execution]
    peaks = {n: int(in_fresh_process("evaluation", *same, "--peak", n)) / 2**20 for n in names}
    calls = sides(names, spec, dtype, args.execution)
    report: dict[str, Any] = {
        "model": args.model,
        "dtype": str(dtype).removeprefix("torch."),
        "evaluation_s": compared(interleaved({n: c[0] for n, c in calls.items()}, args.runs)),
        "decode_s": compared(interleaved({n: c[1] for n, c in calls.items()}, args.runs)),
        "peak_memory_mib": compared(peaks, 0),
    }
    calls.clear()
    wanted = WANTED + (WANTED_OPENVINO if "openvino" in names else ())
    if dtype is not torch.float32:
        errors = relative_error(spec, dtype, args.execution)
        report["relative_error"] = compared(errors, 6)
        wanted += (Wanted("relative_error.ratio_diffusers", most=1.0),)
    report = judged(report, wanted)
    print(json.dumps(report, indent=2))
    return exit_code(report, check=args.check)


if __name__ == "__main__":
    sys.exit(main())
