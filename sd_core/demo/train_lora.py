"""Trains the demo model's LoRA on a CPU, in minutes: shapes become outlines.

    python -m sd_core.demo.train_lora [--steps 2500] [--out FILE]

The demo model stays as it is; adapters of all layers of its UNet learn to predict the noise of
hollow scenes from captions that say nothing of it (Hu et al. 2021), so the style is the LoRA's own.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import sd_core
from sd_core.demo import DEMO_SPEC
from sd_core.demo.scenes import caption, draw_hollow, random_scene
from sd_core.demo.train import CAPTION_DROP, MIN_SNR_GAMMA, OFFSET_NOISE, warmup_cosine
from sd_core.model.adapters import LowRank, Share, adapted
from sd_core.model.diffusion import LatentDiffusion
from sd_core.model.tokenizer import tokenize
from sd_core.sampling.schedule import alphas_cumprod
from sd_core.weights.key_map import diffusers_unet_name
from sd_core.weights.lora.names import layers_of

RANK = 4
BATCH = 16
SCENES = 4000
PEAK = 2e-3


def starting_points() -> dict[str, LowRank]:
    """Adapters of all layers of the UNet that change nothing yet."""
    _, shapes = layers_of(DEMO_SPEC)
    return {
        name: LowRank(
            (torch.randn(RANK, *into) / np.prod(into) ** 0.5).requires_grad_(),
            torch.zeros(out, RANK, requires_grad=True),
            1.0,
        )
        for (component, name), (out, *into) in shapes.items()
        if component == "unet"
    }


def batches(model: LatentDiffusion, rng: random.Random) -> Iterator[tuple[Tensor, list[str]]]:
    """(B, 4, h, w) latents of hollow scenes, and their captions; forever."""
    scenes = [random_scene(rng) for _ in range(SCENES)]
    latents = []
    for start in range(0, SCENES, 32):
        pixels = np.stack([np.asarray(draw_hollow(scene)) for scene in scenes[start : start + 32]])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            latents.append(model.vae.moments(images)[0])
    clean = torch.cat(latents) * model.spec.vae.scale_factor
    while True:
        chosen = rng.choices(range(SCENES), k=BATCH)
        captions = ["" if rng.random() < CAPTION_DROP else caption(scenes[i], rng) for i in chosen]
        yield clean[chosen], captions


def train(model: LatentDiffusion, steps: int) -> dict[str, LowRank]:
    """The adapters after so many steps."""
    torch.manual_seed(1)
    rng = random.Random(1)
    model.requires_grad_(False)
    adapters = starting_points()
    parameters = [tensor for one in adapters.values() for tensor in (one.down, one.up)]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.0)
    levels = torch.tensor(alphas_cumprod()).float()
    whole = [(slice(0, BATCH), {name: (Share(one, 1.0),) for name, one in adapters.items()})]
    data = batches(model, rng)
    started, average = time.monotonic(), 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK * warmup_cosine(step, steps, 50)
        clean, captions = next(data)
        timesteps = torch.randint(0, len(levels), (BATCH,))
        alpha = levels[timesteps][:, None, None, None]
        noise = torch.randn_like(clean) + OFFSET_NOISE * torch.randn(BATCH, 4, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        with torch.no_grad():
            context = model.text(torch.tensor(tokenize(captions)))
        with adapted(model.unet.adapters, whole):
            predicted = model.unet(noisy, timesteps, context)
        snr = alpha / (1 - alpha)
        loss = (snr.clamp(max=MIN_SNR_GAMMA) / snr * (predicted - noise).square()).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average = loss.item() if step == 0 else 0.98 * average + 0.02 * loss.item()
        if step % 50 == 0 or step == steps - 1:
            print(f"{step} loss {average:.4f} {time.monotonic() - started:.0f}s", flush=True)
    return adapters


def save(adapters: dict[str, LowRank], path: Path) -> None:
    """Float16 safetensors under kohya's names."""
    tensors: dict[str, Tensor] = {}
    for name, (down, up, _, _) in adapters.items():
        theirs = diffusers_unet_name(f"{name}.weight", DEMO_SPEC.unet.num_res_blocks)
        layer = f"lora_unet_{theirs.removesuffix('.weight').replace('.', '_')}"
        wide = up[(...,) + (None,) * (down.dim() - 2)]  # as a 1x1 convolution's
        tensors[f"{layer}.lora_down.weight"] = down.detach().half().contiguous()
        tensors[f"{layer}.lora_up.weight"] = wide.detach().half().contiguous()
        tensors[f"{layer}.alpha"] = torch.tensor(float(RANK))
    save_file(tensors, path)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--out", type=Path, default=Path("hollow.safetensors"))
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    save(train(sd_core.load_model("demo", dtype="float32"), args.steps), args.out)


if __name__ == "__main__":
    main()
