"""CompVis single files: `.ckpt` (a Lightning pickle) and `.safetensors`, told apart by content."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sd_core.spec import PREDICTIONS, ModelSpec, TextSpec, UNetSpec, VAESpec
from sd_core.weights import sizes
from sd_core.weights.checkpoint import Checkpoint, Part, VAECheckpoint
from sd_core.weights.configs import compvis_spec
from sd_core.weights.errors import CheckpointError, named
from sd_core.weights.identify import foreign_model, foreign_vae, what_bytes_seem
from sd_core.weights.json_text import parse_json
from sd_core.weights.key_map import clip_names, diffusers_vae_names
from sd_core.weights.safetensors_file import looks_like_safetensors, read_safetensors
from sd_core.weights.sizes import UnknownSizeError
from sd_core.weights.stored import MappedFile, StoredTensor
from sd_core.weights.torch_legacy import looks_like_torch_legacy, read_torch_legacy
from sd_core.weights.torch_zip import looks_like_torch_zip, read_torch_zip
from sd_core.weights.validate_sizes import native_size, one_of, sized

SPEC_KEY = "sdbatch.spec"
"""Where our own files keep their sizes as JSON: what shapes do not tell need not be assumed."""

ADAPTER_KEY = "lora_adapter_metadata"
"""Where diffusers keeps PEFT's configuration of an adapter as JSON."""

PREDICTION_MARKS = ("v_pred", "ztsnr")
"""Names of tensors that say, by being there, that a UNet predicts the velocity, and that its last
timestep has no signal."""

SCALE_TOLERANCE = 2**-7
"""Relative; bfloat16 holds 0.18215 as 0.1826."""

MAX_SPEC_VALUES = 1000
DEEPER = 100

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model."


@dataclass(frozen=True)
class WeightsFile:
    """A file's tensors by name, its format, and what else it carries as JSON: the sizes of a model,
    PEFT's configuration of an adapter.
    """

    format: str
    tensors: Mapping[str, StoredTensor]
    spec_json: str | None = None
    adapter_json: str | None = None


def read_weights(path: Path) -> WeightsFile:
    """Reads any of the formats. Raises `CheckpointError`, saying what another file seems to be."""
    file = MappedFile(path)
    if looks_like_safetensors(file):
        tensors, metadata = read_safetensors(file)
        texts = metadata.get(SPEC_KEY), metadata.get(ADAPTER_KEY)
        return WeightsFile("safetensors", tensors, *texts)
    for looks_like, read in _PICKLED:
        if looks_like(file):
            content = read(file)
            return WeightsFile("ckpt", _state_dict(path, content), _text(content.get(SPEC_KEY)))
    raise CheckpointError(
        f"{path}: it seems to be {what_bytes_seem(file)}; expected weights as .safetensors or .ckpt"
    )


_PICKLED = (
    (looks_like_torch_zip, read_torch_zip),
    (looks_like_torch_legacy, read_torch_legacy),
)


def _state_dict(path: Path, content: dict[Any, Any]) -> dict[str, StoredTensor]:
    """The weights of an unpickled file, with or without Lightning's wrapper around them."""
    inner = content.get("state_dict", content)
    if isinstance(inner, dict):
        tensors = {str(k): v for k, v in inner.items() if isinstance(v, StoredTensor)}
        # A textual inversion keeps its tensor a level deeper; it is told from a model by the name.
        # Dicts may be the same one many times, so few are looked into.
        for outer, nested in islice(inner.items(), DEEPER) if not tensors else ():
            if isinstance(nested, dict):
                found = islice(nested.items(), DEEPER)
                tensors |= {f"{outer}.{k}": v for k, v in found if isinstance(v, StoredTensor)}
        if tensors:
            return tensors
    keys = ", ".join(named(str(k)) for k in list(content)[:8])
    raise CheckpointError(
        f"{path}: it holds no weights, only: {keys}; expected a state_dict of tensors"
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def open_single_file(path: Path, config: Path | None = None) -> Checkpoint:
    """A whole model in one file.

    config: an original `v1-inference.yaml`; without it sizes come from the file's own spec, else
    from the weights' shapes. Raises `CheckpointError`.
    """
    weights = read_weights(path)
    seems = foreign_model({name: tensor.shape for name, tensor in weights.tensors.items()})
    if seems is not None:
        raise CheckpointError(
            f"{path}: it seems to be {seems}; expected a whole Stable Diffusion v1 model"
        )
    parts = {
        "text": _part(weights, TEXT_PREFIX, _text_names),
        "unet": _part(weights, UNET_PREFIX, lambda name: (UNET_PREFIX + name,)),
        "vae": _part(weights, VAE_PREFIX, lambda name: (VAE_PREFIX + name,)),
    }
    prefixes = (TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX)
    spec, note = _spec(path, weights, parts, config)
    spec, said = _marked(spec, weights, config)
    if config is None:
        _check_scale(path, weights, spec.vae.scale_factor)
    return Checkpoint(
        path=str(path),
        format=weights.format,
        spec=spec,
        parts=parts,
        leftovers=tuple(name for name in weights.tensors if not name.startswith(prefixes)),
        note=note,
        said=said,
    )


def _part(weights: WeightsFile, prefix: str, names: Callable[[str], tuple[str, ...]]) -> Part:
    stored = {name: t for name, t in weights.tensors.items() if name.startswith(prefix)}
    return Part(stored, names)


def _text_names(name: str) -> tuple[str, ...]:
    return tuple(f"{TEXT_PREFIX}transformer.{inner}" for inner in clip_names(name))


def _spec(
    path: Path, weights: WeightsFile, parts: Mapping[str, Part], config: Path | None
) -> tuple[ModelSpec, str]:
    """The sizes, and what to add to an error where they had to be assumed."""
    try:
        if config is None and weights.spec_json is not None:
            return _own_spec(weights.spec_json), ""
        text = sizes.text_sizes(parts["text"].shape_of)
        if config is not None:
            spec = compvis_spec(config, text)
            told = sizes.guidance_dim(parts["unet"].shape_of)  # of which such a file says nothing
            unet = dataclasses.replace(spec.unet, guidance_dim=told)
            return dataclasses.replace(spec, unet=unet), ""
        unet = sizes.unet_sizes(parts["unet"].shape_of)
        return ModelSpec(unet=unet, vae=sizes.vae_sizes(parts["vae"].shape_of), text=text), ""
    except UnknownSizeError as error:
        # Compared with v1's own sizes, the error that follows names all that is wrong at once.
        return ModelSpec(), f" (v1's own sizes are assumed, as there is no sound {error})"
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: its sizes are not those of a v1 model: {error}") from None


def _marked(
    spec: ModelSpec, weights: WeightsFile, config: Path | None
) -> tuple[ModelSpec, frozenset[str]]:
    """The spec with what marks in the file tell of predictions, and what is said of them."""
    if config is None and weights.spec_json is not None:
        return spec, frozenset(("prediction", "zero_snr"))
    v_pred, ztsnr = (mark in weights.tensors for mark in PREDICTION_MARKS)
    said = set() if config is None else {"prediction"}
    if config is None and (v_pred or ztsnr):
        spec = dataclasses.replace(spec, prediction="v")
        said.add("prediction")
    if ztsnr:
        spec = dataclasses.replace(spec, zero_snr=True)
        said.add("zero_snr")
    return spec, frozenset(said)


def _check_scale(path: Path, weights: WeightsFile, assumed: float) -> None:
    """A model that was trained with `scale_by_std` keeps the scale of its latents as a tensor."""
    stored = weights.tensors.get("scale_factor")
    if stored is None or stored.numel != 1:
        return
    value = float(stored.view().double())
    if not math.isclose(value, assumed, rel_tol=SCALE_TOLERANCE):
        raise CheckpointError(
            f"{path}: its scale_factor is {value:.6g}, and {assumed:.6g} would be assumed; give "
            "a v1-inference.yaml as config, in which scale_factor says what is meant"
        )


def _own_spec(text: str) -> ModelSpec:
    """Reads what `export` writes. Raises `ValueError`, `TypeError` or `KeyError`."""
    values = parse_json(text.encode(), max_values=MAX_SPEC_VALUES)
    unet, vae, text_sizes = (
        {key: tuple(v) if isinstance(v, list) else v for key, v in values[part].items()}
        for part in ("unet", "vae", "text")
    )
    return ModelSpec(
        unet=sized(UNetSpec, **unet),
        vae=sized(VAESpec, **vae),
        text=sized(TextSpec, **text_sizes),
        native_size=native_size(values["native_size"]),
        prediction=one_of("prediction", values.get("prediction", PREDICTIONS[0]), PREDICTIONS),
        zero_snr=one_of("zero_snr", values.get("zero_snr", False), (False, True)),
    )


def open_vae_file(path: Path) -> VAECheckpoint:
    """An autoencoder in a file: CompVis names with or without prefix, diffusers names, or the one
    inside a whole model. Raises `CheckpointError`.
    """
    weights = read_weights(path)
    names = weights.tensors.keys()
    seems = foreign_vae({name: tensor.shape for name, tensor in weights.tensors.items()})
    if seems is not None:
        raise CheckpointError(f"{path}: it seems to be {seems}; expected an autoencoder (VAE)")
    if any(name.startswith(VAE_PREFIX) for name in names):
        part = _part(weights, VAE_PREFIX, lambda name: (VAE_PREFIX + name,))
    elif any(name.startswith("encoder.down_blocks.") for name in names):
        levels = len({name.split(".")[2] for name in names if name.startswith("encoder.down_b")})
        part = Part(weights.tensors, lambda name: diffusers_vae_names(name, levels))
    else:
        part = Part(weights.tensors, lambda name: (name,))
    try:
        spec = sizes.vae_sizes(part.shape_of)
    except UnknownSizeError as error:
        raise CheckpointError(f"{path}: an autoencoder (VAE) without {error}") from None
    except (ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: not the autoencoder of a v1 model: {error}") from None
    return VAECheckpoint(spec, part, scale_factor_known=False)
