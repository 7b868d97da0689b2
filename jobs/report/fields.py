"""Fields of a record, as the gallery shows them.

An image's index row has what tiles, search, filters and orders need; its details have the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from jobs.folder.records import Record
from jobs.image_settings import IMAGE_SETTINGS
from jobs.limits import MAX_PROMPT_CHARS
from jobs.manifest.labels import PREFIX

Value = str | int | float | bool

Row = dict[str, Value]
"""An image's fields: plain values that browsers read as they are."""

_SETTINGS = {
    name: setting.label
    for name, setting in IMAGE_SETTINGS.items()
    if name not in ("width", "height")
}

INDEX_LABELS: Mapping[str, str] = {
    "prompt": "Prompt",
    "negative": "Negative prompt",
    "seed": "Seed",
    **_SETTINGS,
    "size": "Size",
    "loras": "LoRA",
    "embeddings": "Embeddings",
    "vae": "VAE",
    "init_image_name": "Init image",
    "mask_name": "Mask",
    "model": "Model",
    "format": "Format",
    "device": "Device",
    "dtype": "Number format",
    "bytes": "Bytes",
    "render_s": "Seconds to render",
    "index": "Index",
    "path": "File",
    "thumbnail": "Thumbnail",
}
"""Fields of an index row, in the order of the page, and their names there. Labels of a prompt are
fields of their own, `meta.<label>`."""

DETAIL_LABELS: Mapping[str, str] = {
    "meta": "More labels",
    "width": "Width",
    "height": "Height",
    "init_image": "Init image's file",
    "mask": "Mask's file",
    "name": "Name",
    "evaluations": "Model evaluations",
    "sha256": "SHA-256",
    "model_digest": "Model digest",
}
"""Fields that only the view of one image needs."""

MOST_LABELS = 100
"""Labels that are fields of their own, of the images in one file of the index."""

_EXACT_IN_BROWSERS = 2**53  # beyond, JSON numbers lose digits in JavaScript


def index_row(record: Record) -> Row:
    """Gives the fields that tiles, search, filters and orders need; all labels are among them."""
    flat = dict(record)
    flat["model"] = record["model"]["name"]
    flat["size"] = f"{record['width']}×{record['height']}"
    for key, told in (("loras", _lora), ("embeddings", _name)):
        if isinstance(uses := record.get(key), list):
            flat[key] = ", ".join(map(told, uses))
    if "vae" in record:
        flat["vae"] = _name(record["vae"])
    render_s = record.get("timings_s", {}).get("render")
    if render_s is not None:
        flat["render_s"] = round(render_s, 2) if math.isfinite(render_s) else render_s
    row = {key: _plain(flat[key]) for key in INDEX_LABELS if flat.get(key) is not None}
    if isinstance(labels := record.get("meta"), dict):
        row |= {f"{PREFIX}{name}": _plain(value) for name, value in labels.items()}
    return row


def detail_row(record: Record) -> Row:
    """Gives the rest of what is shown of an image."""
    flat = dict(record, model_digest=record["model"]["digest"])
    flat.pop("meta", None)
    return {key: _plain(flat[key]) for key in DETAIL_LABELS if flat.get(key) is not None}


def keep_labels(rows: list[Row], details: list[Row]) -> None:
    """Moves labels from index rows to details where there are more than `MOST_LABELS`."""
    names = [name for row in rows for name in row if name.startswith(PREFIX)]
    kept = set(list(dict.fromkeys(names))[:MOST_LABELS])
    if len(kept) == len(set(names)):
        return
    for row, detail in zip(rows, details, strict=True):
        more = [name for name in row if name.startswith(PREFIX) and name not in kept]
        if more:
            texts = [f"{name.removeprefix(PREFIX)}: {row.pop(name)}" for name in more]
            detail["meta"] = ", ".join(texts)


def _plain(value: Any) -> Value:
    """A value of a record, which anybody may have written, as browsers read it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, int):  # also a bool
        return value if abs(value) < _EXACT_IN_BROWSERS else str(value)
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:MAX_PROMPT_CHARS]


def _name(use: Any) -> str:
    """The name of a file, of a record that anybody may have written."""
    return str(use.get("name")) if isinstance(use, dict) else str(use)


def _lora(use: Any) -> str:
    """A LoRA and its weight, where it is not 1."""
    weights = [use.get("weight"), use.get("text_weight")] if isinstance(use, dict) else [1, 1]
    if weights[0] != weights[1]:
        return f"{_name(use)} {weights[0]} (text {weights[1]})"
    return _name(use) if weights[0] == 1 else f"{_name(use)} {weights[0]}"
