"""Writes a model in the formats that are read, so that other programs can use it too."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sd_core.model.text import clip_config
from sd_core.sampling.schedule import BETA_END, BETA_START, TRAIN_TIMESTEPS
from sd_core.spec import LATENT_FACTOR, ModelSpec
from sd_core.weights.folder_layout import FOLDERS, INDEX, SCHEDULER, TOKENIZER
from sd_core.weights.key_map import clip_names, diffusers_unet_name, diffusers_vae_names
from sd_core.weights.single_file import SPEC_KEY, TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX

if TYPE_CHECKING:
    from sd_core.model.diffusion import LatentDiffusion

Weights = dict[str, Tensor]


def save_single_file(
    model: LatentDiffusion, path: Path, *, dtype: torch.dtype | None = None
) -> None:
    """Writes a CompVis single file: `.safetensors`, or `.ckpt` for programs that need a pickle.

    The sizes go with it (`sdbatch.spec`), as shapes do not tell all of them. dtype: converted to
    this; None keeps the model's. Raises `ValueError` for another ending.
    """
    spec = json.dumps(dataclasses.asdict(model.spec), sort_keys=True)
    weights = single_file_weights(model, dtype)
    unfinished = path.with_name(path.name + ".part")
    if path.suffix == ".safetensors":
        save_file(weights, unfinished, metadata={SPEC_KEY: spec, "format": "pt"})
    elif path.suffix == ".ckpt":
        torch.save({"state_dict": weights, SPEC_KEY: spec}, unfinished)
    else:
        raise ValueError(f"{path}: expected a name ending in .safetensors or .ckpt")
    unfinished.replace(path)


def single_file_weights(model: LatentDiffusion, dtype: torch.dtype | None = None) -> Weights:
    """The weights on the CPU under the names of a CompVis single file."""
    state = model.state_dict()
    return {single_file_name(name): _plain(tensor, dtype) for name, tensor in state.items()}


def single_file_name(name: str) -> str:
    """A weight's name in a CompVis single file. name: in `LatentDiffusion.state_dict()`."""
    component, inner = name.split(".", 1)
    if component == "text":
        return f"{TEXT_PREFIX}transformer.{clip_names(inner)[0]}"
    return (UNET_PREFIX if component == "unet" else VAE_PREFIX) + inner


def _plain(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.detach().to("cpu", dtype).contiguous()


def save_diffusers(
    model: LatentDiffusion,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
) -> None:
    """Writes a diffusers folder that `StableDiffusionPipeline.from_pretrained` reads.

    folder: made if need be; files of the same names are replaced. dtype: see `save_single_file`.
    variant: put into the weights' file names, "fp16" by convention for float16.
    """
    spec = model.spec
    blocks, levels = spec.unet.num_res_blocks, len(spec.vae.channel_mult)
    unet = {diffusers_unet_name(n, blocks): t for n, t in model.unet.state_dict().items()}
    vae = {
        # Its attention is linear layers there: 1x1 convolutions without their two last axes.
        diffusers_vae_names(n, levels)[0]: t[..., 0, 0] if _is_attention(n, t) else t
        for n, t in model.vae.state_dict().items()
    }
    text = {clip_names(n)[0]: t for n, t in model.text.state_dict().items()}
    ending = ".safetensors" if variant is None else f".{variant}.safetensors"
    components: tuple[tuple[str, str, Weights, dict[str, Any]], ...] = (
        ("unet", "diffusion_pytorch_model", unet, unet_config(spec)),
        ("vae", "diffusion_pytorch_model", vae, vae_config(spec)),
        ("text", "model", text, text_config(spec)),
    )
    for component, stem, weights, config in components:
        inside = folder / FOLDERS[component]
        inside.mkdir(parents=True, exist_ok=True)
        plain = {name: _plain(tensor, dtype) for name, tensor in weights.items()}
        save_file(plain, inside / (stem + ending), metadata={"format": "pt"})
        _write_json(inside / "config.json", config)
    model.tokenizer.library.save_pretrained(str(folder / TOKENIZER))
    (folder / SCHEDULER).parent.mkdir(exist_ok=True)
    _write_json(folder / SCHEDULER, _scheduler_config(spec))
    _write_json(folder / INDEX, _MODEL_INDEX)


def _is_attention(name: str, tensor: Tensor) -> bool:
    return ".attn_1." in name and tensor.dim() == 4


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _scheduler_config(spec: ModelSpec) -> dict[str, Any]:
    """Schedule of v1 as it is published, with the prediction of this UNet."""
    prediction = "v_prediction" if spec.prediction == "v" else spec.prediction
    rescaled = {"rescale_betas_zero_snr": True} if spec.zero_snr else {}
    return {**_SCHEDULER_CONFIG, "prediction_type": prediction, **rescaled}


def unet_config(spec: ModelSpec) -> dict[str, Any]:
    """`unet/config.json`: arguments of diffusers' `UNet2DConditionModel`."""
    unet = spec.unet
    kinds = [("CrossAttn" if attends else "") for attends in unet.attention_levels]
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "block_out_channels": [unet.channels * mult for mult in unet.channel_mult],
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "layers_per_block": unet.num_res_blocks,
        "attention_head_dim": unet.num_heads,  # means the number of heads, by an old mistake
        "cross_attention_dim": unet.context_dim,
        "norm_num_groups": unet.norm_groups,
        **({"time_cond_proj_dim": unet.guidance_dim} if unet.guidance_dim else {}),
        "sample_size": spec.native_size // LATENT_FACTOR,
    }


def vae_config(spec: ModelSpec) -> dict[str, Any]:
    """`vae/config.json`: arguments of diffusers' `AutoencoderKL`."""
    vae = spec.vae
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [vae.channels * mult for mult in vae.channel_mult],
        "down_block_types": ["DownEncoderBlock2D"] * len(vae.channel_mult),
        "up_block_types": ["UpDecoderBlock2D"] * len(vae.channel_mult),
        "layers_per_block": vae.num_res_blocks,
        "latent_channels": vae.latent_channels,
        "norm_num_groups": vae.norm_groups,
        "sample_size": spec.native_size,
        "scaling_factor": vae.scale_factor,
    }


def text_config(spec: ModelSpec) -> dict[str, Any]:
    """`text_encoder/config.json`: transformers' configuration of a `CLIPTextModel`."""
    config: dict[str, Any] = clip_config(spec.text).to_dict()
    return {**config, "architectures": ["CLIPTextModel"]}


_SCHEDULER_CONFIG = {
    "_class_name": "PNDMScheduler",
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": TRAIN_TIMESTEPS,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}

_MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
}
