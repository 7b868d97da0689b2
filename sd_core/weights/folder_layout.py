"""Names of the files in a diffusers folder, and which of them a model takes.

Torch is not imported: a caller that only asks for names need not wait for it.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from sd_core.weights.config_files import read_json
from sd_core.weights.errors import CheckpointError, shown

INDEX = "model_index.json"
FOLDERS = {"text": "text_encoder", "unet": "unet", "vae": "vae"}
SCHEDULER = "scheduler/scheduler_config.json"
TOKENIZER = "tokenizer"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)

_STEMS = {
    "text": ("model", "pytorch_model"),
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
}


def weight_candidates(component: str) -> tuple[str, ...]:
    """File names that a component's weights may have, the preferred one first.

    Full precision comes before the fp16 variant, so that a folder has one digest whatever type
    the model is run in; safetensors before pickles.
    """
    safe, pickled = _STEMS[component]
    return (
        f"{safe}.safetensors",
        f"{safe}.safetensors.index.json",
        f"{pickled}.bin",
        f"{pickled}.bin.index.json",
        f"{safe}.fp16.safetensors",
        f"{safe}.safetensors.index.fp16.json",
        f"{pickled}.fp16.bin",
        f"{pickled}.bin.index.fp16.json",
    )


def shards(index: Path) -> list[str]:
    """Names of the files that a sharded component's index lists, which lie beside it."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: it has no weight_map from weights to files")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if PurePosixPath(name).name != name:
            raise CheckpointError(
                f"{index}: it refers to {shown(name)}; expected files in its own folder"
            )
    return names
