"""A tiny trained model of the v1 architecture: everything can be tried without a download."""

from __future__ import annotations

from sd_core.spec import DEMO_NATIVE_SIZE, ModelSpec, TextSpec, UNetSpec, VAESpec

DEMO_SPEC = ModelSpec(
    unet=UNetSpec(
        channels=64,
        channel_mult=(1, 2, 3),
        num_res_blocks=1,
        attention_levels=(False, True, True),
        num_heads=2,  # few and wide: narrow heads cost most of a step on a CPU
        context_dim=96,
        norm_groups=16,
    ),
    vae=VAESpec(channels=16, channel_mult=(1, 2, 4, 8), num_res_blocks=1, norm_groups=8),
    text=TextSpec(width=96, layers=4, heads=4, mlp_width=384),
    native_size=DEMO_NATIVE_SIZE,
)
"""Sizes of the demo model; `vae.scale_factor` is measured in training and kept with the weights."""
