"""Scales of an adapter's layers by PEFT's configuration, where its tensors do not tell them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sd_core.weights.json_text import parse_json

MOST_VALUES = 10_000

Scale = Callable[[str, int], float]
"""The scale of a layer, of its name with the component first, as `unet.conv_in`, and its rank."""

Alpha = Annotated[float, Field(allow_inf_nan=False)]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True)

    lora_alpha: Alpha | None = None
    use_rslora: bool = False
    alpha_pattern: dict[str, Alpha] = {}

    def scale(self, name: str, rank: int) -> float:
        found = (
            alpha
            for end, alpha in self.alpha_pattern.items()
            if name == end or name.endswith(f".{end}")
        )
        alpha = next(found, self.lora_alpha)
        if alpha is None:
            return 1.0
        # Rank-stabilised (Kalajdzievski 2023): by the root, where it is wanted.
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def scales(text: str | None) -> Scale:
    """The scale by layer; 1 without a configuration. Raises `ValueError` for one that is damaged.

    text: JSON, its keys with the component first, as `unet.lora_alpha`.
    """
    if text is None:
        return lambda name, rank: 1.0
    values = parse_json(text.encode(), max_values=MOST_VALUES)
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    configs = {part: _config(values, part) for part in ("unet", "text_encoder")}

    def scale(place: str, rank: int) -> float:
        component, _, name = place.partition(".")
        return configs[component].scale(name, rank) if component in configs else 1.0

    return scale


def _config(values: Mapping[str, Any], component: str) -> _Config:
    start = f"{component}."
    own = {k.removeprefix(start): v for k, v in values.items() if k.startswith(start)}
    try:
        return _Config.model_validate(own)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{start}{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
