"""Finds out what a source is, and opens it."""

from __future__ import annotations

import dataclasses
from importlib import resources
from pathlib import Path
from typing import Any

from sd_core.spec import PREDICTIONS
from sd_core.weights import hub
from sd_core.weights.checkpoint import Checkpoint, VAECheckpoint
from sd_core.weights.diffusers_folder import open_folder, open_vae_folder
from sd_core.weights.errors import CheckpointError
from sd_core.weights.paths import local_path, require_there
from sd_core.weights.single_file import open_single_file, open_vae_file

DEMO = "demo"
_DEMO_FILE = "demo.safetensors"


def open_checkpoint(source: str | Path, config: Path | None = None) -> Checkpoint:
    """Opens a whole model; nothing but headers is read yet. See `sd_core.load_model`."""
    if source == DEMO:
        return _open_demo()
    if isinstance(source, str) and source.startswith(hub.PREFIX):
        folder, commit = hub.fetch_model(source)
        _refuse_config(source, config)
        return open_folder(folder, revision=commit)
    path = require_there(source, "model weights")
    if path.is_dir():
        _refuse_config(source, config)
        return open_folder(path)
    return open_single_file(path, None if config is None else local_path(config))


def _refuse_config(source: str | Path, config: Path | None) -> None:
    if config is not None:
        raise CheckpointError(
            f"{source}: it carries its own configuration; config {config} goes with a single file"
        )


def _open_demo() -> Checkpoint:
    path = Path(str(resources.files("sd_core.demo").joinpath(_DEMO_FILE)))
    if not path.is_file():
        raise CheckpointError(
            f"the demo model's weights, {_DEMO_FILE}, are missing from this installation; install "
            "sdbatch again, or train them with python -m sd_core.demo.train"
        )
    return open_single_file(path)


def open_vae(source: str | Path) -> tuple[VAECheckpoint, str | None]:
    """(an autoencoder alone, the hub's commit). source: a file, a folder, or `hf:owner/name`."""
    if isinstance(source, str) and source.startswith(hub.PREFIX):
        folder, commit = hub.fetch_vae(source)
        return open_vae_folder(folder), commit
    path = require_there(source, "model weights")
    return (open_vae_folder(path) if path.is_dir() else open_vae_file(path)), None


def with_vae(checkpoint: Checkpoint, vae: VAECheckpoint) -> Checkpoint:
    """The checkpoint with another autoencoder.

    Where that does not say its scale factor, the model's stays: it belongs to the latents that the
    UNet was trained on. Raises `CheckpointError` where the latents differ.
    """
    ours, theirs = checkpoint.spec.vae, vae.spec
    if ours.latent_channels != theirs.latent_channels:
        raise CheckpointError(
            f"{checkpoint.path}: the model's latents have {ours.latent_channels} channels, those "
            f"of the other autoencoder {theirs.latent_channels}"
        )
    if not vae.scale_factor_known:
        theirs = dataclasses.replace(theirs, scale_factor=ours.scale_factor)
    part = dataclasses.replace(vae.part, where="vae: ")
    return dataclasses.replace(
        checkpoint,
        spec=dataclasses.replace(checkpoint.spec, vae=theirs),
        parts={**checkpoint.parts, "vae": part},
    )


def with_prediction(checkpoint: Checkpoint, prediction: str, zero_snr: bool | None) -> Checkpoint:
    """The checkpoint, of which it is known what it predicts.

    prediction: one of `PREDICTIONS`, or "auto" for what the files say, else v1's. zero_snr: None
        likewise. Raises `CheckpointError` where the files say otherwise, and `ValueError`.
    """
    if prediction not in ("auto", *PREDICTIONS):
        raise ValueError(f"prediction {prediction!r:.80}; expected one of auto, epsilon, v")
    spec = checkpoint.spec
    asked: dict[str, Any] = {} if prediction == "auto" else {"prediction": prediction}
    if zero_snr is not None:
        asked["zero_snr"] = zero_snr
    for name, value in asked.items():
        if name in checkpoint.said and getattr(spec, name) != value:
            raise CheckpointError(
                f"{checkpoint.path}: its files say {name} {getattr(spec, name)}; "
                f"{value} was asked for"
            )
    spec = dataclasses.replace(spec, **asked)
    if spec.zero_snr and spec.prediction == "epsilon":
        raise CheckpointError(
            f"{checkpoint.path}: zero_snr goes with prediction v only: where there is no signal, "
            "noise tells nothing"
        )
    return dataclasses.replace(checkpoint, spec=spec)
