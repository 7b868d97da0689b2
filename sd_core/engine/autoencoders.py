"""Autoencoders that images bring along, run as the model's own is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sd_core.cpu.packing import packed_bytes
from sd_core.engine.request import Vae, check_file
from sd_core.execution import PACKED, pack_part, run_part_as
from sd_core.model.diffusion import LatentDiffusion
from sd_core.model.vae import AutoencoderKL
from sd_core.weights.assemble import WeightLoader, match
from sd_core.weights.checkpoint import Checkpoint
from sd_core.weights.single_file import open_vae_file


@dataclass(frozen=True)
class LoadedVae:
    """An autoencoder on the device. nbytes: of its weights."""

    part: AutoencoderKL
    nbytes: int


def read_autoencoder(wanted: Vae, model: LatentDiffusion) -> LoadedVae:
    """The autoencoder of a file, on the model's device and in its number type.

    Raises `CheckpointError` for a file that is another than its sha256 says, or whose weights are
    not those of an autoencoder of the model's sizes.
    """
    check_file(wanted)
    part = open_vae_file(wanted.file).part
    with torch.device("meta"):
        autoencoder = AutoencoderKL(model.spec.vae).to(model.dtype)
    shapes = {name: tuple(weight.shape) for name, weight in autoencoder.state_dict().items()}
    checkpoint = Checkpoint(str(wanted.file), "", model.spec, {"vae": part})
    weights = WeightLoader(autoencoder, match({"vae": shapes}, checkpoint)["vae"], model.device)
    if model.execution in PACKED:
        pack_part(autoencoder, model.spec, model.execution, weights.load_layer_weights)
    weights.bring()
    run_part_as(autoencoder.requires_grad_(False).eval(), model.execution)
    if model.device.type == "cuda":
        torch.cuda.current_stream(model.device).synchronize()
    own = sum(weight.nbytes for weight in autoencoder.parameters())
    return LoadedVae(autoencoder, own + packed_bytes(autoencoder))
