"""Loads a model: from its files to ready.

Most of a start goes into importing torch and transformers, into new memory, and into the digest. So
the digest is made in a thread while transformers is imported, which keeps one core busy, too;
weights are laid out for the CPU's kernels as they come out of the file, without a copy in between;
and laid-out weights are kept for the next start, which maps them.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from sd_core.cpu.mkldnn_tensor import can_rebuild
from sd_core.device import resolve_device, resolve_dtype
from sd_core.engine.request import Lora, check_file
from sd_core.execution import PACKED, pack_part, resolve_execution, run_as
from sd_core.model.diffusion import LatentDiffusion, Provenance
from sd_core.model.text import TextEncoder, weight_shapes
from sd_core.model.tokenizer import PromptTokenizer
from sd_core.model.unet import UNet
from sd_core.model.vae import AutoencoderKL
from sd_core.weight_cache import LEAST_BYTES, Kept, WeightCache, put_back
from sd_core.weights.assemble import Filling, Matched, WeightLoader, digest, match
from sd_core.weights.checkpoint import Checkpoint
from sd_core.weights.errors import CheckpointError, named
from sd_core.weights.merged import merged, merged_digest
from sd_core.weights.open import open_checkpoint, open_vae, with_prediction, with_vae
from sd_core.weights.stored import Shape
from sd_core.weights.validate_sizes import check_depth, check_sizes

log = logging.getLogger(__name__)

Part = TypeVar("Part", bound=nn.Module)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Importing transformers makes some 200,000 objects, nearly all of which stay. Python's
    collector would go through them again and again; what it would find, it finds afterwards.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_collection()
def load_model(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    config: str | Path | None = None,
    vae: str | Path | None = None,
    execution: str = "eager",
    cache: Path | None = None,
    loras: Sequence[Lora] = (),
    prediction: str = "auto",
    zero_snr: bool | None = None,
) -> LatentDiffusion:
    """Loads a Stable Diffusion v1 model, ready for inference.

    source: "demo"; a CompVis single file (`.ckpt` or `.safetensors`); a diffusers folder; or
        `hf:owner/name[@revision]`, a model in the diffusers format on the hub.
    device: "cpu", "cuda", "cuda:N"; "auto" takes a GPU where there is one.
    dtype: "float32", "bfloat16", "float16"; "auto" is float16 on a GPU, and on a CPU bfloat16 where
        that is native, else float32.
    config: an original `v1-inference.yaml` for a single file. Without it sizes are read off the
        weights' shapes.
    vae: another autoencoder to use instead: a file, a folder or `hf:owner/name[@revision]`.
    loras: adapters of any kind, LoHa, LoKr and differences too, that are merged into the weights,
        in this order; the model has another digest then.
    prediction: what the UNet gives, "epsilon" (noise) or "v" (velocity); "auto" takes what the
        files say, and noise where they say nothing.
    zero_snr: whether its last timestep has no signal, as some models for v are trained; None takes
        what the files say.
    execution, cache: see `sd_core.make_ready`; made ready while it loads, a model takes less time
        and memory.

    Raises `CheckpointError`, a `ValueError`, saying what is wrong with a source; `ExecutionError`,
    another, where this machine cannot run it so; `ValueError` for a device or type that is unknown
    or not here; `OSError` where the cache cannot be made.
    """
    target = resolve_device(device)
    number_type = resolve_dtype(dtype, target)
    execution = resolve_execution(execution, target, number_type)
    checkpoint = open_checkpoint(source, None if config is None else Path(config))
    checkpoint = with_prediction(checkpoint, prediction, zero_snr)
    vae_revision = None
    if vae is not None:
        replacement, vae_revision = open_vae(vae)
        checkpoint = with_vae(checkpoint, replacement)
    spec = checkpoint.spec
    check_sizes(spec, str(source), checkpoint.tokenizer)
    check_depth(checkpoint)
    empty = partial(_empty, dtype=number_type, source=source)

    def parts() -> tuple[UNet, AutoencoderKL]:
        return empty(lambda: UNet(spec.unet)), empty(lambda: AutoencoderKL(spec.vae))

    unet, autoencoder = parts()
    shapes = {"text": weight_shapes(spec.text), "unet": _shapes(unet), "vae": _shapes(autoencoder)}
    stored = match(shapes, checkpoint)
    for lora in loras:
        check_file(lora)
    fillings = merged(stored, loras, spec)

    def digest_of() -> str:
        return merged_digest(digest(spec, stored, checkpoint.tokenizer), loras)

    weight_cache = None
    worth_it = execution in PACKED and _nbytes(stored, number_type) >= LEAST_BYTES
    if cache is not None and worth_it and can_rebuild():
        weight_cache = WeightCache(cache / "laid-out", spec, number_type, execution)
    with ThreadPoolExecutor(1) as beside:
        digested = beside.submit(digest_of)
        looking = None if weight_cache is None else beside.submit(_find, weight_cache, digested)
        text = empty(lambda: TextEncoder(spec.text))  # imports transformers
        tokenizer = _tokenizer(checkpoint)
        model = LatentDiffusion(spec, text=text, unet=unet, vae=autoencoder, tokenizer=tokenizer)
        kept = None if looking is None else looking.result()
        if kept is not None and not _put_back(model, kept, execution):
            kept, (model.unet, model.vae) = None, parts()
        if kept is None:
            _bring(model, fillings, execution, target)
    _fill_position_ids(text, target)
    model.provenance = Provenance(
        source=str(source),
        format=checkpoint.format,
        digest=digested.result(),
        revision=checkpoint.revision,
        vae=None if vae is None else str(vae),
        vae_revision=vae_revision,
        loras=tuple((lora.file.name, lora.sha256, lora.weight, lora.text_weight) for lora in loras),
    )
    run_as(model.requires_grad_(False).eval(), execution, cache)
    if weight_cache is not None and kept is None:
        weight_cache.keep(model.digest, model)
    return model


def _tokenizer(checkpoint: Checkpoint) -> PromptTokenizer:
    """The model's tokenizer. One of its own is built here already, to find out whether it works."""
    tokenizer = PromptTokenizer(checkpoint.tokenizer)
    if checkpoint.tokenizer is not None:
        try:
            tokenizer([""])
        except Exception as error:  # the library knows no other class for what it refuses
            raise CheckpointError(
                f"{checkpoint.path}: its tokenizer cannot be used: {named(str(error))}"
            ) from None
    return tokenizer


def _find(weight_cache: WeightCache, digested: Future[str]) -> Kept | None:
    return weight_cache.find(digested.result())


def _nbytes(stored: Mapping[str, Matched], dtype: torch.dtype) -> int:
    weights = (weight for part in stored.values() for weight in part.values())
    return dtype.itemsize * sum(weight.numel for weight in weights)


def _bring(
    model: LatentDiffusion,
    stored: Mapping[str, Mapping[str, Filling]],
    execution: str,
    device: torch.device,
) -> None:
    """Fills an empty model with the weights of its files, and lays them out."""
    fillings = {
        name: WeightLoader(part, stored[name], device) for name, part in model.named_children()
    }
    if execution in PACKED:
        pack_part(model.unet, model.spec, execution, fillings["unet"].load_layer_weights)
        pack_part(model.vae, model.spec, execution, fillings["vae"].load_layer_weights)
    for filling in fillings.values():
        filling.bring()


def _put_back(model: LatentDiffusion, kept: Kept, execution: str) -> bool:
    """Fills an empty model with weights that were laid out before; False where torch refuses."""
    with torch.device("meta"):
        pack_part(model.unet, model.spec, execution)
        pack_part(model.vae, model.spec, execution)
    try:
        put_back(model, kept)
    except RuntimeError as error:
        log.warning("weights are laid out anew: %s", error)
        return False
    return True


def _empty(build: Callable[[], Part], *, dtype: torch.dtype, source: str | Path) -> Part:
    """A part without memory for its weights."""
    try:
        with torch.device("meta"):
            return build().to(dtype)
    except (ValueError, RuntimeError) as error:  # groups that do not divide, tensors beyond 2^63
        raise CheckpointError(f"{source}: no model can have these sizes: {error}") from None


def _shapes(part: nn.Module) -> dict[str, Shape]:
    return {name: tuple(weight.shape) for name, weight in part.state_dict().items()}


def _fill_position_ids(text: TextEncoder, device: torch.device) -> None:
    """transformers keeps 0 … 76 in a buffer that is in no state dict, so it is still on `meta`."""
    position_ids = torch.arange(text.spec.length, device=device)[None]
    text.transformer.embeddings.register_buffer("position_ids", position_ids, persistent=False)
