"""Samplers by the names that other programs have for them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sd_core.spec import SAMPLER_TABLE

_KARRAS = re.compile(r"[ _-]*(karras|ka)$", re.IGNORECASE)


def sampler_called(name: str) -> tuple[str, bool] | None:
    """Our name of a sampler that the web UI, diffusers, k-diffusion or ComfyUI calls `name`, and
    whether that means Karras spacing. None for a sampler that is not here.
    """
    bare = _KARRAS.sub("", name.strip())
    sampler = _KNOWN.get(_letters(bare))
    karras = bare != name.strip()
    if sampler is None or (karras and not SAMPLER_TABLE[sampler].karras):
        return None
    return sampler, karras


def _letters(name: str) -> str:
    """A name without the marks in which programs differ: `k_dpmpp_2m` is `DPM++ 2M`."""
    letters = re.sub(r"[ _-]", "", name.lower().replace("++", "pp"))
    return letters[1:] if letters.startswith(("keuler", "kheun", "klms", "kdpm")) else letters


def _known() -> Iterator[tuple[str, str]]:
    for ours, sampler in SAMPLER_TABLE.items():
        for name in (ours, sampler.webui, sampler.diffusers, *sampler.aliases):
            yield _letters(name), ours


_KNOWN = dict(_known())
