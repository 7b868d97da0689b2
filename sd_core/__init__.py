"""The latent diffusion model and its mathematics.

The public names are resolved on first use, so that `sd_core.spec` and `sd_core.sampling.samplers`
can be used where torch is not installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sd_core.engine.engine import Engine
    from sd_core.engine.request import Embedding, Lora, Request, Vae
    from sd_core.engine.sample import sample_latents
    from sd_core.execution import make_ready
    from sd_core.loading import load_model
    from sd_core.model.diffusion import LatentDiffusion
    from sd_core.pixels import to_pil
    from sd_core.sampling.samplers import step_table
    from sd_core.spec import Sampling
    from sd_core.weights.errors import CheckpointError

__all__ = [
    "CheckpointError",
    "Embedding",
    "Engine",
    "LatentDiffusion",
    "Lora",
    "Request",
    "Sampling",
    "Vae",
    "load_model",
    "make_ready",
    "sample_latents",
    "step_table",
    "to_pil",
]

_MODULES = {
    "CheckpointError": "sd_core.weights.errors",
    "Embedding": "sd_core.engine.request",
    "Engine": "sd_core.engine.engine",
    "LatentDiffusion": "sd_core.model.diffusion",
    "Lora": "sd_core.engine.request",
    "Request": "sd_core.engine.engine",
    "Sampling": "sd_core.spec",
    "Vae": "sd_core.engine.request",
    "load_model": "sd_core.loading",
    "make_ready": "sd_core.execution",
    "sample_latents": "sd_core.engine.sample",
    "step_table": "sd_core.sampling.samplers",
    "to_pil": "sd_core.pixels",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'sd_core' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
