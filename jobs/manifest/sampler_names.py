"""Samplers by the names that other programs have for them."""

from __future__ import annotations

import re

from sd_core.spec import KARRAS_SAMPLERS, SAMPLERS

WEBUI_NAMES = {
    "plms": "PLMS",
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "lms": "LMS",
    "dpmpp_2m": "DPM++ 2M",
    "ddpm": "DDPM",
}
"""Our sampler names -> those of AUTOMATIC1111's menu."""

_DIFFUSERS_NAMES = {
    "plms": "PNDMScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "ddpm": "DDPMScheduler",
}

_KARRAS = re.compile(r"[ _-]*(karras|ka)$", re.IGNORECASE)


def sampler_called(name: str) -> tuple[str, bool] | None:
    """Our name of a sampler that the web UI, diffusers, k-diffusion or ComfyUI calls `name`, and
    whether that means Karras spacing. None for a sampler that is not here.
    """
    bare = _KARRAS.sub("", name.strip())
    sampler = _KNOWN.get(_letters(bare))
    karras = bare != name.strip()
    if sampler is None or (karras and sampler not in KARRAS_SAMPLERS):
        return None
    return sampler, karras


def _letters(name: str) -> str:
    """A name without the marks in which programs differ: `k_dpmpp_2m` is `DPM++ 2M`."""
    letters = re.sub(r"[ _-]", "", name.lower().replace("++", "pp"))
    return letters[1:] if letters.startswith(("keuler", "kheun", "klms", "kdpm")) else letters


_KNOWN = {
    **{_letters(name): name for name in SAMPLERS},
    **{_letters(name): sampler for sampler, name in WEBUI_NAMES.items()},
    **{_letters(name): sampler for sampler, name in _DIFFUSERS_NAMES.items()},
    "eulerancestral": "euler_a",
    "pndm": "plms",
}
