"""The latent diffusion model: text encoder, UNet and autoencoder.

All tensors in and out are float32, whatever type the weights are in: the mathematics of sampling
runs in float32, and one rule is easier to keep than one for each method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sd_core.device  # noqa: F401  # asks for huge pages, before there is a tensor
from sd_core.model.chunks import Chunk
from sd_core.model.layers import Context, KeysValues
from sd_core.model.text import TextEncoder
from sd_core.model.tokenizer import MAX_TOKENS, PromptTokenizer
from sd_core.model.unet import UNet
from sd_core.model.vae import AutoencoderKL
from sd_core.sampling.noise import Generator, draw_noise
from sd_core.spec import LATENT_FACTOR, ModelSpec
from sd_core.transfer import to_device
from sd_core.vocab.bpe import tokens_over


@dataclass(frozen=True)
class Provenance:
    """Where a model came from, for the records of its images.

    source: as given to `load_model`. format: safetensors, ckpt or diffusers. revision: the hub's
    commit, where it came from there. vae, vae_revision: the same of a replaced autoencoder.
    digest: sha256 in hex over sizes, weights, and a tokenizer that is not CLIP's own; the same for
    every container of these. loras: merged into the weights: file name, sha256, weight and weight
    in the text encoder of each.
    """

    source: str
    format: str
    digest: str
    revision: str | None = None
    vae: str | None = None
    vae_revision: str | None = None
    loras: tuple[tuple[str, str, float, float], ...] = ()


class LatentDiffusion(nn.Module):
    """A Stable Diffusion v1 model. Its methods track no gradients.

    Every method takes tensors on any device, of any floating point type, and returns float32 on
    the model's device. A wrong shape is a `ValueError` naming it and the expected one.

    text, unet, vae: its parts, where they are there already. tokenizer: CLIP's own by default.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        text: TextEncoder | None = None,
        unet: UNet | None = None,
        vae: AutoencoderKL | None = None,
        tokenizer: PromptTokenizer | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.text = TextEncoder(spec.text) if text is None else text
        self.unet = UNet(spec.unet) if unet is None else unet
        self.vae = AutoencoderKL(spec.vae) if vae is None else vae
        self.tokenizer = PromptTokenizer() if tokenizer is None else tokenizer
        self.provenance: Provenance | None = None
        # These are changed by `sd_core.execution.make_ready`.
        self.execution = "eager"
        self.kernels = ""  # of our own, where the way of running does not say it
        self.memory_format = torch.contiguous_format

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and of everything computed inside."""
        return next(self.unet.parameters()).dtype

    @property
    def digest(self) -> str:
        """See `Provenance`; empty for a model that was not loaded."""
        return "" if self.provenance is None else self.provenance.digest

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """(B, 77) int64 token ids on the CPU; longer prompts are cut, shorter padded."""
        if isinstance(prompts, str):
            raise TypeError(f"prompts is the string {prompts!r}; expected a list of strings")
        ids = self.tokenizer(list(prompts))
        return torch.tensor(ids, dtype=torch.int64).reshape(-1, MAX_TOKENS)

    def tokens_over(self, prompt: str) -> int:
        """Tokens of a prompt that `tokenize` cuts off; mostly 0."""
        return tokens_over(prompt)

    def encode_prompt(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> (B, 77, context_dim) text states."""
        return self.encode_tokens(self.tokenize(prompts))

    def encode_tokens(self, ids: Tensor, clip_skip: int = 1) -> Tensor:
        """ids: (B, 77) int64 -> (B, 77, context_dim) text states, after the final layer norm.

        clip_skip: the layer that is read, 1 being the last, as A1111 counts; diffusers counts the
        layers that are left out. Raises `ValueError` where the text encoder has no such layer.
        """
        _check("ids", ids, (None, MAX_TOKENS))
        layers = self.spec.text.layers
        if not 1 <= clip_skip <= layers:
            raise ValueError(f"clip_skip is {clip_skip}; this text encoder has {layers} layers")
        with torch.inference_mode():
            states = self.text(to_device(ids, self.device), clip_skip)
        return _plain(states)

    def encode_chunks(self, chunks: Sequence[Chunk]) -> Tensor:
        """Chunks of prompts, of one clip_skip and emphasis -> (B, 77, context_dim) text states.

        Weighted tokens are emphasised as the program of that name does it: "a1111" multiplies their
        states and then all, so that the chunk's mean is what it was; "comfy" moves them from those
        of the empty prompt, as far as the weight says.
        """
        (clip_skip,) = {chunk.clip_skip for chunk in chunks}
        (emphasis,) = {chunk.emphasis for chunk in chunks}
        states = self.encode_tokens(torch.tensor([chunk.ids for chunk in chunks]), clip_skip)
        if emphasis == "none":
            return states
        weights = to_device(torch.tensor([chunk.weights for chunk in chunks]), states.device)
        if emphasis == "comfy":
            # As many as the others are: the bits of a product may depend on it.
            empty = torch.tensor([self.tokenizer.framed([])] * len(chunks))
            start = self.encode_tokens(empty, clip_skip)
            moved = start + (states - start) * weights[..., None]
            return torch.where(weights[..., None] == 1.0, states, moved)
        weighted = states * weights[..., None]
        mean, new_mean = (x.mean(dim=(1, 2), keepdim=True) for x in (states, weighted))
        return weighted * (mean / new_mean)

    @property
    def told_guidance(self) -> bool:
        """True for a model that is told its guidance beside the timestep, and needs no row for the
        negative prompt.
        """
        return self.spec.unet.guidance_dim > 0

    def embed_timesteps(self, timesteps: Tensor, guidance: float = 1.0) -> Tensor:
        """timesteps: (T,) within 0 to 999, fractional allowed -> (T, n), of the model's type: what
        `denoise` takes instead of each, with that work done.

        guidance: scale, for a model that is told it.
        """
        _check("timesteps", timesteps, (None,))
        with torch.inference_mode():
            # Timesteps stay float32: bfloat16 cannot tell 997 from 999.
            times = to_device(timesteps.float(), self.device)
            return self.unet.embed(times, torch.full_like(times, guidance))

    def project_context(self, context: Tensor) -> list[KeysValues]:
        """context: (B, 77, context_dim), of `encode_prompt` -> what `denoise` takes instead, with
        that work done: for each attention keys and values (B, heads, 77, d), of the model's type.
        """
        _check("context", context, (None, None, self.spec.unet.context_dim))
        with torch.inference_mode():
            return self.unet.project(to_device(context, self.device).to(self.dtype))

    def denoise(
        self, latents: Tensor, timesteps: Tensor, context: Tensor | Sequence[Context]
    ) -> Tensor:
        """The noise that the UNet predicts in latents.

        latents: (B, 4, h, w). timesteps: (B,) within 0 to 999, fractional allowed, or (B, n) of
        `embed_timesteps`. context: (B, 77, context_dim), of `encode_prompt`, or what
        `project_context` made of it. Returns (B, 4, h, w).
        """
        _check("latents", latents, (None, self.spec.unet.in_channels, None, None))
        rows = latents.shape[0]
        if timesteps.dim() == 1:
            _check("timesteps", timesteps, (rows,))
            timesteps = self.embed_timesteps(timesteps)
        _check("timesteps", timesteps, (rows, None))
        if isinstance(context, Tensor):
            _check("context", context, (rows, None, self.spec.unet.context_dim))
            context = self.project_context(context)
        with torch.inference_mode():
            eps = self.unet(self._pixels(latents), timesteps, context)
        return _plain(eps)

    def decode(self, latents: Tensor, vae: AutoencoderKL | None = None) -> Tensor:
        """latents: (B, 4, h, w), scaled as the UNet sees them -> (B, 3, 8h, 8w) in [-1, 1].

        vae: instead of the model's own.
        """
        vae = self.vae if vae is None else vae
        spec = self.spec.vae
        _check("latents", latents, (None, spec.latent_channels, None, None))
        with torch.inference_mode():
            # Divided in float32, so that the latents are rounded to the model's type only once.
            unscaled = to_device(latents.float(), self.device) / spec.scale_factor
            images = vae.decode(self._pixels(unscaled)).float().clamp(-1.0, 1.0)
        return _plain(images)

    def encode_image(
        self,
        images: Tensor,
        generators: Sequence[Generator] | None = None,
        vae: AutoencoderKL | None = None,
    ) -> Tensor:
        """Images to latents, times the scale factor.

        images: (B, 3, 8h, 8w) in [-1, 1]. generators: one an image, from which a
        sample of the posterior is drawn as diffusers draws it; without them, its mean.
        vae: instead of the model's own. Returns (B, 4, h, w).
        """
        vae = self.vae if vae is None else vae
        _check("images", images, (None, 3, None, None))
        height, width = images.shape[-2:]
        if height % LATENT_FACTOR or width % LATENT_FACTOR:
            raise ValueError(
                f"images are {width}x{height} pixels; expected multiples of {LATENT_FACTOR}"
            )
        if generators is not None and len(generators) != len(images):
            raise ValueError(
                f"{len(generators)} generators for {len(images)} images; expected one an image"
            )
        with torch.inference_mode():
            mean, deviation = vae.moments(self._pixels(images))
            latents = mean.float()
            if generators is not None:
                shape = tuple(latents.shape[1:])
                noise = torch.stack([draw_noise(generator, shape) for generator in generators])
                latents = latents + deviation.float() * to_device(noise, self.device)
            latents = latents * self.spec.vae.scale_factor
        return _plain(latents)

    def _pixels(self, x: Tensor) -> Tensor:
        """(B, C, h, w) as the convolutions take it."""
        return to_device(x, self.device).to(self.dtype, memory_format=self.memory_format)


def _plain(result: Tensor) -> Tensor:
    """A contiguous float32 copy made outside inference mode: callers may change it in place."""
    return result.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _check(name: str, tensor: Tensor, expected: tuple[int | None, ...]) -> None:
    shape = tuple(tensor.shape)
    if len(shape) != len(expected) or any(
        want is not None and have != want for have, want in zip(shape, expected, strict=True)
    ):
        wanted = ", ".join("any" if n is None else str(n) for n in expected)
        raise ValueError(f"{name} have shape {shape}; expected ({wanted})")
