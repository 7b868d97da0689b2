"""Opens diffusers folders: `model_index.json`, and a folder of config and weights a component."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sd_core.spec import PREDICTIONS, ModelSpec
from sd_core.weights.checkpoint import Checkpoint, Part, VAECheckpoint
from sd_core.weights.config_files import read_json
from sd_core.weights.configs import (
    diffusers_prediction,
    diffusers_text,
    diffusers_unet,
    diffusers_vae,
)
from sd_core.weights.errors import SHOWN, CheckpointError, named
from sd_core.weights.folder_layout import FOLDERS, INDEX, SCHEDULER, shards, weight_candidates
from sd_core.weights.identify import PIPELINES
from sd_core.weights.key_map import clip_names, diffusers_unet_name, diffusers_vae_names
from sd_core.weights.single_file import read_weights
from sd_core.weights.stored import StoredTensor
from sd_core.weights.tokenizer_files import read_tokenizer

_TEXT_LAYER = re.compile(r"(text_model\.)?encoder\.layers\.([0-9]{1,3})\.")


def open_folder(folder: Path, revision: str | None = None) -> Checkpoint:
    """A whole model. revision: kept in the result. Raises `CheckpointError`."""
    index_path = folder / INDEX
    if not index_path.is_file():
        raise CheckpointError(f"{folder}: {_what_folder_seems(folder)}; expected {INDEX} in it")
    index = read_json(index_path)
    pipeline = named(str(index.get("_class_name", ""))[:SHOWN])
    seems = next((name for start, name in PIPELINES.items() if pipeline.startswith(start)), None)
    absent = [name for name in FOLDERS.values() if not isinstance(index.get(name), list)]
    if seems is not None or absent:
        seems = seems or f"a {pipeline or 'pipeline'} without {', '.join(absent)}"
        raise CheckpointError(
            f"{folder}: it seems to be {seems}; expected a Stable Diffusion v1 pipeline"
        )
    unet, native_size = diffusers_unet(folder / "unet" / "config.json")
    vae = diffusers_vae(folder / "vae" / "config.json")
    text = diffusers_text(folder / "text_encoder" / "config.json")
    prediction, zero_snr, said = PREDICTIONS[0], False, frozenset[str]()
    if (folder / SCHEDULER).is_file():
        prediction, zero_snr, said = diffusers_prediction(folder / SCHEDULER)
    try:
        spec = ModelSpec(unet, vae, text, native_size, prediction, zero_snr)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder}: its components do not go together: {error}") from None

    def part(component: str, names: Callable[[str], tuple[str, ...]]) -> Part:
        name = FOLDERS[component]
        return Part(_component_weights(folder / name, component), names, where=f"{name}: ")

    text_part = dataclasses.replace(part("text", clip_names), unused=_layers_after(text.layers))

    return Checkpoint(
        path=str(folder),
        format="diffusers",
        spec=spec,
        parts={
            "text": text_part,
            "unet": part("unet", lambda n: (diffusers_unet_name(n, unet.num_res_blocks),)),
            "vae": part("vae", lambda n: diffusers_vae_names(n, len(vae.channel_mult))),
        },
        revision=revision,
        said=said,
        tokenizer=read_tokenizer(folder, _class_name(index.get("tokenizer"))),
    )


def _class_name(component: Any) -> str | None:
    """The class in an entry of `model_index.json`, which is a library's name and a class's."""
    name = component[-1] if isinstance(component, list) and component else None
    return name if isinstance(name, str) else None


def _layers_after(count: int) -> Callable[[str], str | None]:
    """Names the text encoder's layers that its configuration leaves out, as is done to have the
    states of an earlier layer (clip skip).
    """

    def unused(name: str) -> str | None:
        layer = _TEXT_LAYER.match(name)
        return None if layer is None or int(layer[2]) < count else f"text layers after {count}"

    return unused


def open_vae_folder(folder: Path) -> VAECheckpoint:
    """An autoencoder's own folder, or the one inside a pipeline's. Raises `CheckpointError`."""
    if (folder / INDEX).is_file():
        folder = folder / "vae"
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder}: {_what_folder_seems(folder)}; expected an autoencoder's config.json in it"
        )
    spec = diffusers_vae(folder / "config.json")
    stored = _component_weights(folder, "vae")
    levels = len(spec.channel_mult)
    return VAECheckpoint(spec, Part(stored, lambda n: diffusers_vae_names(n, levels)), True)


def _component_weights(folder: Path, component: str) -> dict[str, StoredTensor]:
    names = _file_names(folder)
    chosen = next((name for name in weight_candidates(component) if name in names), None)
    if chosen is None:
        expected = ", ".join(weight_candidates(component)[:3])
        raise CheckpointError(f"{folder}: no weights in it; expected {expected} or an fp16 variant")
    if not chosen.endswith(".json"):
        return dict(read_weights(folder / chosen).tensors)
    tensors: dict[str, StoredTensor] = {}
    for shard in shards(folder / chosen):
        tensors.update(read_weights(folder / shard).tensors)
    return tensors


def _file_names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def _what_folder_seems(folder: Path) -> str:
    names = _file_names(folder)
    files = [name for name in names if name.endswith((".safetensors", ".ckpt"))]
    if "config.json" in names:
        return "it seems to be one component of a model, not the whole"
    if files:
        return (
            f"no diffusers folder, but it holds {', '.join(files[:4])}, which can be loaded itself"
        )
    return "no diffusers folder"
