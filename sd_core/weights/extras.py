"""What files hold besides the model, known to be harmless: skipped on purpose, and only this."""

from __future__ import annotations

import re

_SCHEDULE_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
    "logvar",
)

_HARMLESS = tuple(
    re.compile(pattern)
    for pattern in (
        # Buffers of the training schedule; v1's are fixed, and computed in `sd_core.schedule`.
        rf"({'|'.join(_SCHEDULE_BUFFERS)})",
        # Running averages kept while training, beside the weights that are used.
        r"model_ema\..+",
        r"first_stage_model\.model_ema\..+",
        # The autoencoder's discriminator and perceptual loss.
        r"(first_stage_model\.)?loss\..+",
        # 0, 1, 2, … 76: saved by transformers before 4.31.
        r"(cond_stage_model\.transformer\.)?(text_model\.)?embeddings\.position_ids",
    )
)


def is_harmless(name: str) -> bool:
    """Whether a tensor of this name may be left out of the model without saying so."""
    return any(pattern.fullmatch(name) for pattern in _HARMLESS)
