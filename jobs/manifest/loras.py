"""LoRA that a manifest uses, and how much of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.manifest.lora_tags import LoraTag
from jobs.manifest.named_files import Kind, KnownFile, NamedFiles
from sd_core.weights.lora.header import check_lora

LORA = Kind("LoRA", "loras", unnamed=":<>", check=check_lora)  # a tag could not say other names

Use = tuple[str, str, float, float, str | None]
"""The values of a `jobs.task.LoraUse`, as entries keep them."""


def lora_use(loras: NamedFiles, given: str | Mapping[str, Any], folder: Path) -> Use:
    """An item of a list of LoRA: a name or path, or {name, weight, text_weight}.

    folder: of paths. Raises `ValueError`.
    """
    values = {"name": given} if isinstance(given, str) else given
    weight = float(values.get("weight", 1.0))
    text_weight = float(values.get("text_weight", weight))
    name, sha256, file = loras.find(values["name"], folder)
    return name, sha256, weight, text_weight, file


def use_of(tag: LoraTag, known: KnownFile) -> Use:
    """A LoRA as a tag in a prompt asks for it."""
    return known.name, known.sha256, tag.weight, tag.text_weight, known.file


def written(use: Use) -> str | dict[str, Any]:
    """A LoRA as a manifest names it that has `manifest_names`."""
    name, _, weight, text_weight, _ = use
    if weight == text_weight == 1.0:
        return name
    values = {"name": name, "weight": weight}
    return values if weight == text_weight else {**values, "text_weight": text_weight}
