"""Trains the demo model from nothing on a CPU, in stages that each save what they made.

    python -m sd_core.demo.train --work DIR [--stage vae|text|unet|export]

vae: the autoencoder. text: the text tower learns to tell a caption's attributes apart, so that the
UNet finds them ready. unet: the UNet and the text tower together, by noise prediction on latents,
in rounds; the exponential moving average is what is kept. export: float16 safetensors beside this
file.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sd_core.demo import DEMO_SPEC
from sd_core.demo.scenes import (
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZE,
    SIZES,
    Scene,
    caption,
    draw,
    random_scene,
)
from sd_core.device import resolve_dtype
from sd_core.model.diffusion import LatentDiffusion
from sd_core.model.layers import ResBlock, SpatialTransformer
from sd_core.model.text import TextEncoder
from sd_core.model.tokenizer import tokenize
from sd_core.model.unet import UNet
from sd_core.model.vae import AutoencoderKL
from sd_core.sampling.schedule import alphas_cumprod
from sd_core.spec import ModelSpec
from sd_core.weights.export import save_single_file

STAGES = ("vae", "text", "unet", "export")
CROP = 64
WHOLE_SCENES = 1 / 8  # share of the autoencoder's steps, the last ones
KL_WEIGHT = 1e-4
CAPTION_DROP = 0.1  # share of captions left empty, for classifier-free guidance
OFFSET_NOISE = 0.3
MIN_SNR_GAMMA = 5.0
LEAST_ALPHA = 0.05


def fast_products() -> torch.autocast:
    """bfloat16 matrix products where the CPU has them: emulated, they are slower than float32."""
    native = resolve_dtype("auto", torch.device("cpu")) is torch.bfloat16
    return torch.autocast("cpu", torch.bfloat16, enabled=native)


def scene_batch(rng: random.Random, count: int, crop: int | None = None) -> Tensor:
    """(count, 3, side, side) float32 in [-1, 1]; crops lie around one of the scene's shapes."""
    images = []
    for _ in range(count):
        scene = random_scene(rng)
        pixels = np.asarray(draw(scene))
        if crop is not None:
            item = rng.choice(scene.items)
            reach = item.radius
            left, top = (
                int(min(max(c - crop / 2 + rng.uniform(-reach, reach), 0), SIZE - crop))
                for c in (item.x, item.y)
            )
            pixels = pixels[top : top + crop, left : left + crop]
        images.append(pixels)
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return batch.float() / 127.5 - 1


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate at a step: linear up, then half a cosine down to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * min(done, 1.0)))


def train_vae(work: Path, steps: int) -> None:
    """Encoder and decoder, on crops around the shapes, for most of a whole scene is background; at
    the end on whole scenes, where the attention sees as much as it will later."""
    torch.manual_seed(1)
    rng = random.Random(1)
    vae = AutoencoderKL(DEMO_SPEC.vae)
    optimizer = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    ema = copy.deepcopy(vae)
    started = time.monotonic()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * warmup_cosine(step, steps, 200)
        on_crops = step < (1 - WHOLE_SCENES) * steps
        images = scene_batch(rng, 8, CROP) if on_crops else scene_batch(rng, 4)
        with fast_products():
            mean, std = vae.moments(images)
            mean, std = mean.float(), std.float()
            decoded = vae.decode(mean + std * torch.randn_like(std)).float()
        kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()
        error = decoded - images
        mse = error.square().mean()
        loss = mse + 0.1 * error.abs().mean() + KL_WEIGHT * kl
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update_ema(ema, vae, 0.998)
        if step % 100 == 0:
            psnr, seconds = 10 * np.log10(4 / mse.item()), time.monotonic() - started
            print(f"vae {step} psnr {psnr:.1f} {seconds:.0f}s", flush=True)
    print(f"vae held-out psnr {vae_psnr(ema):.2f}", flush=True)
    save_file(ema.state_dict(), work / "vae.safetensors")


@torch.no_grad()
def vae_psnr(vae: AutoencoderKL, count: int = 64) -> float:
    """Mean peak signal-to-noise ratio in dB of reconstructions of unseen scenes."""
    images = scene_batch(random.Random(999), count)
    decoded = vae.decode(vae.moments(images)[0]).clamp(-1, 1)
    mse = (decoded - images).square().mean(dim=(1, 2, 3))
    return float((10 * torch.log10(4 / mse)).mean())


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    for average, value in zip(ema.parameters(), model.parameters(), strict=True):
        average.lerp_(value, 1 - decay)


def silence(layer: nn.Module) -> None:
    """Sets a layer's weights to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


# Attributes a caption may name, each with its choices; index 0 means "not said".
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "background": tuple(COLOURS),
    "shape0": SHAPES,
    "colour0": tuple(COLOURS),
    "size0": SIZES,
    "place": PLACES,
    "relation": RELATIONS,
    "shape1": SHAPES,
    "colour1": tuple(COLOURS),
    "size1": SIZES,
}


def attributes(scene: Scene, text: str) -> list[int]:
    """The choice of every attribute as the caption names it, 0 where it does not."""
    said: dict[str, str | None] = {"relation": scene.relation, "place": scene.items[0].place}
    tail = text.split(" on ")[-1] if " on " in text else text
    if "background" in text or tail == scene.background:
        said["background"] = scene.background
    for number, item in enumerate(scene.items):
        said[f"shape{number}"] = item.shape
        said[f"colour{number}"] = item.colour
        said[f"size{number}"] = item.size
    return [
        0 if (value := said.get(name)) is None else choices.index(value) + 1
        for name, choices in ATTRIBUTES.items()
    ]


def used_tokens() -> Tensor:
    """Ids that captions use; the embeddings of all others stay zero, so that they say nothing."""
    rng = random.Random(5)
    captions = [caption(random_scene(rng), rng) for _ in range(20_000)]
    return torch.tensor(tokenize(captions)).unique()


def train_text(work: Path, steps: int) -> None:
    torch.manual_seed(2)
    rng = random.Random(2)
    text = TextEncoder(DEMO_SPEC.text)
    embedding = text.transformer.embeddings.token_embedding.weight
    used = used_tokens()
    with torch.no_grad():
        embedding.zero_()
        embedding[used] = torch.randn(len(used), DEMO_SPEC.text.width) * 0.3
    width = DEMO_SPEC.text.width
    heads = nn.ModuleList([nn.Linear(width, len(c) + 1) for c in ATTRIBUTES.values()])
    parameters = [*text.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * warmup_cosine(step, steps, 100)
        scenes = [random_scene(rng) for _ in range(64)]
        captions = [caption(scene, rng) for scene in scenes]
        wanted = torch.tensor([attributes(s, c) for s, c in zip(scenes, captions, strict=True)])
        ids = torch.tensor(tokenize(captions))[:, :32]  # captions are short; the rest is padding
        with fast_products():
            states = text(ids)
            last = states[torch.arange(len(ids)), ids.argmax(dim=1)]  # the end token's state
            logits = [head(last).float() for head in heads]
        losses = [F.cross_entropy(out, wanted[:, i]) for i, out in enumerate(logits)]
        torch.stack(losses).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0:
            right = torch.stack([out.argmax(1) == wanted[:, i] for i, out in enumerate(logits)])
            print(f"text {step} attributes right {right.float().mean().item():.3f}", flush=True)
    save_file(text.state_dict(), work / "text.safetensors")


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, count: int, seed: int) -> tuple[Tensor, list[Scene]]:
    """Posterior means (count, 4, 16, 16) of random scenes, unscaled."""
    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    latents = []
    for start in range(0, count, 32):
        pixels = np.stack([np.asarray(draw(s)) for s in scenes[start : start + 32]])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        with fast_products():
            latents.append(vae.moments(images)[0].float())
    return torch.cat(latents), scenes


def silent_unet() -> UNet:
    """Every residual branch starts as nothing, as in the original."""
    unet = UNet(DEMO_SPEC.unet)
    for module in unet.modules():
        if isinstance(module, ResBlock):
            silence(module.out_layers[3])
        elif isinstance(module, SpatialTransformer):
            silence(module.proj_out)
    silence(unet.out[2])
    return unet


def load_round(work: Path, number: int) -> tuple[dict[str, Tensor], ModelSpec]:
    """Averaged weights that a round ended with, and the demo's spec with its latents' scale."""
    path = work / f"unet-{number}.safetensors"
    with safe_open(path, "pt") as file:
        spec = ModelSpec.from_dict(json.loads(file.metadata()["spec"]))
    return load_file(path), spec


def train_unet(work: Path, number: int, steps: int, batch: int, scenes_count: int) -> None:
    """One round, on scenes of its own; all but the first (0) go on from the former's average with a
    new optimizer and the learning rate back at its peak (Loshchilov & Hutter 2017)."""
    torch.manual_seed(4 + number)
    rng = random.Random(4 + number)
    vae = AutoencoderKL(DEMO_SPEC.vae)
    vae.load_state_dict(load_file(work / "vae.safetensors"))
    text = TextEncoder(DEMO_SPEC.text)
    text.load_state_dict(load_file(work / "text.safetensors"))
    embedding = text.transformer.embeddings.token_embedding.weight
    latents, scenes = encode_scenes(vae, scenes_count, seed=3 + 100 * number)
    unet = silent_unet()
    model = nn.ModuleDict({"unet": unet, "text": text})
    if number == 0:
        scale = 1 / latents.std().item()
    else:
        weights, spec = load_round(work, number - 1)
        scale = spec.vae.scale_factor
        model.load_state_dict(weights)
    latents *= scale
    print(f"unet round {number}: {len(latents)} latents, scale factor {scale:.5f}", flush=True)
    ema = copy.deepcopy(model)
    used = torch.zeros(DEMO_SPEC.text.vocab_size, 1)
    used[used_tokens()] = 1
    optimizer = torch.optim.AdamW(
        [{"params": unet.parameters(), "peak": 7e-4}, {"params": text.parameters(), "peak": 3e-4}],
        betas=(0.9, 0.99),
        weight_decay=0.0,
    )
    levels = torch.tensor(alphas_cumprod()).float()
    started = time.monotonic()
    average = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * warmup_cosine(step, steps, 300)
        chosen = rng.choices(range(len(scenes)), k=batch)
        captions = ["" if rng.random() < CAPTION_DROP else caption(scenes[i], rng) for i in chosen]
        clean = latents[chosen]
        timesteps = torch.randint(0, len(levels), (batch,))
        alpha = levels[timesteps][:, None, None, None]
        # Noise with a mean of its own (Guttenberg 2023): otherwise the mean colour shines through
        # the noisiest latents, and pictures take their colours from the seed, not the prompt.
        noise = torch.randn_like(clean) + OFFSET_NOISE * torch.randn(batch, 4, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        with fast_products():
            context = text(torch.tensor(tokenize(captions)))
            predicted = unet(noisy, timesteps, context).float()
        snr = alpha / (1 - alpha)
        # Noisy latents count more, as for the velocity (Salimans & Ho 2022): only there it is the
        # prompt that tells the colours. Nearly clean ones count less (Hang et al. 2023).
        weight = snr.clamp(max=MIN_SNR_GAMMA) / snr / alpha.clamp(min=LEAST_ALPHA)
        loss = (weight * (predicted - noise).square()).mean()
        loss.backward()
        if embedding.grad is not None:
            embedding.grad.mul_(used)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update_ema(ema, model, min(0.999, (step + 1) / (step + 10)))
        average = loss.item() if step == 0 else 0.98 * average + 0.02 * loss.item()
        if step % 50 == 0:
            seconds = time.monotonic() - started
            print(f"unet {number} {step} loss {average:.4f} {seconds:.0f}s", flush=True)
        if step % 500 == 499 or step == steps - 1:
            vae_spec = dataclasses.replace(DEMO_SPEC.vae, scale_factor=scale)
            spec = dataclasses.replace(DEMO_SPEC, vae=vae_spec)
            spec_text = json.dumps(dataclasses.asdict(spec))
            path = work / f"unet-{number}.safetensors"
            save_file(ema.state_dict(), path, {"spec": spec_text})


def export(work: Path, number: int, path: Path) -> None:
    """A round's UNet and text tower with the autoencoder, float16, as a CompVis single file."""
    weights, spec = load_round(work, number)
    weights |= {f"vae.{name}": t for name, t in load_file(work / "vae.safetensors").items()}
    model = LatentDiffusion(spec)
    model.load_state_dict(weights)
    save_single_file(model, path, dtype=torch.float16)
    print(f"export {path.name}: {path.stat().st_size / 1e6:.1f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where stages keep their results")
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--vae-steps", type=int, default=4600)
    parser.add_argument("--text-steps", type=int, default=600)
    parser.add_argument("--unet-steps", type=int, default=4000, help="of each round")
    parser.add_argument("--rounds", type=int, default=2, help="of the UNet")
    parser.add_argument("--from-round", type=int, default=0, help="those before it lie in --work")
    parser.add_argument("--scenes", type=int, default=20_000, help="of each of the UNet's rounds")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("demo.safetensors"))
    args = parser.parse_args()
    # Moments that fade out become denormal numbers, with which a CPU computes far more slowly.
    # Before the first product: threads inherit the setting when they are made.
    torch.set_flush_denormal(True)
    args.work.mkdir(parents=True, exist_ok=True)
    stages = [args.stage] if args.stage else STAGES
    if "vae" in stages:
        train_vae(args.work, args.vae_steps)
    if "text" in stages:
        train_text(args.work, args.text_steps)
    if "unet" in stages:
        for number in range(args.from_round, args.rounds):
            train_unet(args.work, number, args.unet_steps, batch=32, scenes_count=args.scenes)
    if "export" in stages:
        export(args.work, args.rounds - 1, args.out)


if __name__ == "__main__":
    main()
