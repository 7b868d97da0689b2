"""Lists what files hold besides the model and no picture depends on: only this is left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

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

_ROUTINE = tuple(
    re.compile(pattern)
    for pattern in (
        # Buffers of the training schedule; v1's are fixed, and computed in
        # `sd_core.sampling.schedule`.
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
"""So common that nobody need be told."""

_TEXT = r"(cond_stage_model\.(transformer\.)?)?"
_PROJECTIONS = r"(text_projection(\.weight)?|visual_projection\.weight|logit_scale)"

_NAMED = {
    # CLIP compares pictures with texts by these; ComfyUI saves them, and `CLIPModel` has them.
    "CLIP's projections": _TEXT + _PROJECTIONS,
    "CLIP's vision tower": _TEXT + r"vision_model\..+",
    # Of textual inversion while training; used only for the placeholder that it was trained with.
    "embedding_manager": r"embedding_manager\..+",
    # The noise levels of v1's schedule, as the code for SDXL keeps them.
    "denoiser.sigmas": r"denoiser\.sigmas",
    # Compared with the sizes where the file is opened.
    "scale_factor": r"scale_factor",
    # Say what the UNet predicts, and are looked at where the file is opened.
    "v_pred and ztsnr": r"v_pred|ztsnr",
}
_NAMED_PATTERNS = {kind: re.compile(pattern) for kind, pattern in _NAMED.items()}


def is_routine(name: str) -> bool:
    """Says whether a tensor of this name may be left out without a word."""
    return any(pattern.fullmatch(name) for pattern in _ROUTINE)


def harmless_kind(name: str) -> str | None:
    """Names the kind of a tensor that may be left out with a word; None for all others."""
    found = (kind for kind, pattern in _NAMED_PATTERNS.items() if pattern.fullmatch(name))
    return next(found, None)


def left_out(kinds: Iterable[str]) -> str:
    """The line that names what was left out. kinds: one for each tensor."""
    counted = Counter(kinds)
    listed = ", ".join(f"{kind} ({count})" for kind, count in counted.items())
    return f"left out, as no picture depends on it: {listed}"
