"""LoRA that a prompt asks for, as AUTOMATIC1111's web UI reads it: `<lora:name:0.8>`.

    <lora:name>                the LoRA at weight 1
    <lora:name:0.8>            at another, of the text encoder and the UNet
    <lora:name:0.5:0.8>        of the text encoder 0.5, of the UNet 0.8
    <lora:name:unet=0.8:te=0>  the same by name

`<lyco:…>` is the same. The tags are no part of what the model reads.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import NamedTuple

from sd_core.spec import MOST_LORA_WEIGHT

_TAG = re.compile(r"<(?i:lora|lyco):([^<>]*)>")
_BEGUN = re.compile(r"<(?i:lora|lyco):")
_NUMBER = re.compile(r"[-+]?(\d{1,6}(\.\d{0,20})?|\.\d{1,20})([eE][-+]?\d{1,3})?")
_NAMED = {"te": "text_weight", "unet": "weight"}


class LoraTag(NamedTuple):
    """weight: of the UNet. text_weight: of the text encoder."""

    name: str
    weight: float
    text_weight: float


@lru_cache(maxsize=4096)
def split_tags(prompt: str) -> tuple[str, tuple[LoraTag, ...]]:
    """A prompt without its tags, and these in order. Raises `ValueError` with what and where."""
    if "<" not in prompt:
        return prompt, ()
    tags = tuple(_read(match) for match in _TAG.finditer(prompt))
    text = _TAG.sub("", prompt)
    begun = _BEGUN.search(text)
    if begun is not None:
        where = prompt.find(begun[0]) + 1
        raise ValueError(f"{begun[0]} is not closed by > (at character {where})")
    return (text.strip() if tags else prompt), tags


def without_tags(prompt: str) -> str:
    """A prompt as the model reads it, also where its tags cannot be read."""
    return _TAG.sub("", prompt)


def _read(match: re.Match[str]) -> LoraTag:
    name, *arguments = match[1].split(":")
    weights: dict[str, float] = {}
    place = 0
    for argument in arguments:
        key, equals, number = argument.rpartition("=")
        if equals and key.strip() not in _NAMED:
            raise ValueError(_flaw(match, f"{key.strip()!r:.40} is not te or unet"))
        if not equals and place == len(_NAMED):
            raise ValueError(_flaw(match, "it has more than a name and two weights"))
        field = _NAMED[key.strip()] if equals else list(_NAMED.values())[place]
        place += not equals
        number = number.strip()
        value = float(number) if _NUMBER.fullmatch(number) else math.nan
        if not abs(value) <= MOST_LORA_WEIGHT:
            allowed = f"-{MOST_LORA_WEIGHT:g} to {MOST_LORA_WEIGHT:g}"
            raise ValueError(_flaw(match, f"{number!r:.40} is no weight within {allowed}"))
        weights[field] = value
    if not name.strip():
        raise ValueError(_flaw(match, "the name is missing"))
    text_weight = weights.get("text_weight", 1.0)
    return LoraTag(name.strip(), weights.get("weight", text_weight), text_weight)


def _flaw(match: re.Match[str], what: str) -> str:
    return f"{match[0]:.60}: {what} (at character {match.start() + 1})"
