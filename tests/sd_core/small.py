"""Small models with seeded random weights, of the v1 architecture, for tests without pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from sd_core.engine.request import Rendered
from sd_core.model.diffusion import LatentDiffusion, Provenance
from sd_core.spec import ModelSpec, TextSpec, UNetSpec, VAESpec

SMALL = ModelSpec(
    unet=UNetSpec(channels=32, num_res_blocks=2, context_dim=128),
    vae=VAESpec(channels=32),
    text=TextSpec(width=128, layers=2, heads=2, mlp_width=256),
)
"""All that shapes do not tell is as in v1 here, so that a file without a spec loads right."""

ODD = ModelSpec(
    unet=UNetSpec(
        channels=24,
        channel_mult=(1, 2, 3),
        num_res_blocks=1,
        attention_levels=(False, True, True),
        num_heads=3,
        context_dim=48,
        norm_groups=8,
    ),
    vae=VAESpec(
        channels=16, channel_mult=(1, 2, 4, 8), num_res_blocks=1, norm_groups=8, scale_factor=0.3
    ),
    text=TextSpec(width=48, layers=3, heads=4, mlp_width=96),
    native_size=128,
)
"""Nothing is as in v1 here: a reader that falls back to v1's conventions gets it wrong."""


def small_model(spec: ModelSpec = SMALL, seed: int = 0) -> LatentDiffusion:
    """Random float32 weights from the seed, on the CPU, as `load_model` leaves a model."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LatentDiffusion(spec)
        # Fresh norms and biases are ones and zeros, which hide weights that were mixed up.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    model.provenance = Provenance(source="small", format="memory", digest=f"small-{seed}")
    return model.requires_grad_(False).eval()


LEVEL = 1 / 127.5
"""One level of a pixel among `numbers`: what rounding makes of hardly any difference."""


def numbers(rendered: Rendered) -> Tensor:
    """All that an image is, in one row: its latents, and its pixels in [-1, 1]."""
    pixels = torch.from_numpy(rendered.pixels).float() / 127.5 - 1
    return torch.cat([rendered.latents.flatten(), pixels.flatten()])
