"""Says what a file seems to be that is no Stable Diffusion v1 model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sd_core.weights.errors import named

if TYPE_CHECKING:
    from sd_core.weights.stored import MappedFile, Shape

_HEAD_BYTES = 1024

_MAGIC = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file it stands for; run git lfs pull"),
    (b"GGUF", "a GGUF model of llama.cpp"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
)
_BARE_PICKLE = (
    "a bare pickle, such as torch's formats before 0.2 begin with; load it with torch on a machine "
    "that trusts it and save it anew"
)


def what_bytes_seem(file: MappedFile) -> str:
    """Says what a file seems to be that is neither safetensors nor one of torch's formats."""
    head = bytes(file.map[:_HEAD_BYTES])
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return _BARE_PICKLE
    if not head.strip(b"\0"):
        return "nothing but zeros, as an interrupted download leaves"
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "an HTML page, as a download without the right to it gives"
    if start.startswith((b"{", b"[")):
        return "a JSON text"
    try:
        head[:-4].decode("utf-8")  # a character may be cut at the end
    except UnicodeDecodeError:
        return "an unknown binary format"
    return "a text file"


def foreign_model(shapes: Mapping[str, Shape]) -> str | None:
    """Name of what weights seem to be if not a whole v1 model in a single file, else None."""
    names = shapes.keys()

    def has(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    unet = "model.diffusion_model."
    if not has(unet):
        if has("model_ema."):
            return "the EMA copies of a training run without the model"
        return _component(shapes)
    if has("conditioner.embedders."):
        return "a Stable Diffusion XL model"
    if has(unet + "joint_blocks.", unet + "double_blocks."):
        return "a transformer model (Stable Diffusion 3 or Flux)"
    if has("control_model."):
        return "a ControlNet with the model it steers"
    if has("cond_stage_model.model."):
        return "a Stable Diffusion 2 model"
    first = shapes.get(unet + "input_blocks.0.0.weight", ())
    context = shapes.get(unet + "middle_block.1.transformer_blocks.0.attn2.to_k.weight", ())
    seems = foreign_unet(_second(first), _second(context))
    if seems is not None:
        return seems
    if not has("cond_stage_model."):
        return "a model without its text encoder"
    if not has("first_stage_model."):
        return "a model without its autoencoder"
    return None


def _second(shape: Shape) -> int | None:
    return shape[1] if len(shape) > 1 else None


def foreign_unet(in_channels: int | None, context_dim: int | None) -> str | None:
    """Name of the model that a UNet of these sizes seems to belong to if not to v1, else None."""
    if in_channels in _BY_INPUT_CHANNELS:
        return _BY_INPUT_CHANNELS[in_channels]
    return None if context_dim is None else _BY_CONTEXT.get(context_dim)


_BY_INPUT_CHANNELS = {
    9: "an inpainting model (9 input channels)",
    8: "an image editing or upscaling model (8 input channels)",
    7: "an upscaling model (7 input channels)",
    5: "a depth-guided model (5 input channels)",
}
_BY_CONTEXT = {1024: "a Stable Diffusion 2 model", 2048: "a Stable Diffusion XL model"}


def _component(shapes: Mapping[str, Shape]) -> str:
    names = shapes.keys()

    def has(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    if any(mark in name for name in names for mark in ("lora_up", "lora_A", "hada_w1", "lokr_w1")):
        return "a LoRA, a small change to a model"
    if has("controlnet_", "zero_convs.", "control_model.", "input_hint_block."):
        return "a ControlNet"
    if has("string_to_param", "emb_params") or _is_embedding(shapes):
        return "a textual inversion embedding"
    if has("transformer_blocks.", "joint_blocks.", "double_blocks."):
        return "a transformer model (Stable Diffusion 3 or Flux)"
    if has("taesd", "encoder.layers.0.weight", "decoder.layers.0.weight") or _is_bare_taesd(shapes):
        return TAESD
    if has("encoder.conv_in.", "first_stage_model.", "decoder.conv_in."):
        return "an autoencoder (VAE) alone; pass it as vae="
    if has("input_blocks.", "down_blocks."):
        return "a UNet alone"
    if has("text_model.", "cond_stage_model.", "embeddings.token_embedding."):
        return "a text encoder alone"
    first = ", ".join(map(named, sorted(names)[:3])) or "none at all"
    return f"the weights of another kind of model ({first})"


TAESD = "TAESD, a tiny stand-in for the autoencoder that is meant for previews"


def _is_bare_taesd(shapes: Mapping[str, Shape]) -> bool:
    """Its own files number the layers of encoder or decoder, without a word before."""
    return any(_second(shapes.get(f"{n}.conv.0.weight", ())) == 64 for n in (1, 3))


def _is_embedding(shapes: Mapping[str, Shape]) -> bool:
    """diffusers saves an embedding as one tensor, named by its token."""
    return len(shapes) == 1 and all("." not in name for name in shapes)


def foreign_autoencoder(kind: str) -> str | None:
    """Says what an autoencoder's class in a config seems to be if not v1's, else None."""
    if kind == "AutoencoderTiny":
        return TAESD
    return None if kind in ("", "AutoencoderKL") else f"an {kind}"


def foreign_vae(shapes: Mapping[str, Shape]) -> str | None:
    """Name of what weights seem to be if they hold no autoencoder, else None."""
    if any(name.endswith("decoder.conv_in.weight") for name in shapes):
        return None
    if any(name.startswith("model.diffusion_model.") for name in shapes):
        return "a model without an autoencoder"
    return _component(shapes)


PIPELINES = {
    "StableDiffusionXL": "a Stable Diffusion XL model",
    "StableDiffusion3": "a Stable Diffusion 3 model",
    "Flux": "a Flux model",
    "Kandinsky": "a Kandinsky model",
    "PixArt": "a PixArt model",
}
"""How the pipeline class in a `model_index.json` begins -> what the folder seems to be."""
