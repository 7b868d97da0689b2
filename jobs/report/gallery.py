"""The gallery page: one HTML file that needs nothing but the images beside it.

The page is a template (`gallery.html`, `.css`, `.js`) and data. Prompts are other people's text, so
three things keep them text: the data is JSON with every `<` escaped, the script only ever sets text
content, and the page's policy lets no script run but this one, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from jobs.folder.records import Record
from jobs.image_settings import IMAGE_SETTINGS, SETTINGS
from jobs.task import Failure

GALLERY_LIMIT = 10_000
"""Most images on the page; their data is about 300 bytes each."""

FAILURE_LIMIT = 1_000

# What the page shows of a record, in this order, and what it calls it.
LABELS = {
    "prompt": "Prompt",
    "negative": "Negative prompt",
    "seed": "Seed",
    **{name: setting.label for name, setting in IMAGE_SETTINGS.items()},
    "loras": "LoRA",
    "embeddings": "Embeddings",
    "vae": "VAE",
    "meta": "Labels",
    "init_image_name": "Init image",
    "mask_name": "Mask",
    "init_image": "Init image's file",
    "mask": "Mask's file",
    "model": "Model",
    "index": "Index",
    "name": "Name",
    "path": "File",
    "bytes": "Bytes",
    "evaluations": "Model evaluations",
    "render_s": "Seconds to render",
    "device": "Device",
    "dtype": "Number format",
    "sha256": "SHA-256",
    "model_digest": "Model digest",
}

_EXACT_IN_BROWSERS = 2**53  # beyond, JSON numbers lose digits in JavaScript
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


def gallery_page(
    title: str,
    records: Sequence[Record],
    total: int,
    failures: Iterable[Failure],
    sheets: Sequence[str],
    note: str | None = None,
) -> str:
    """The page. total: images of the job, of which `records` are shown; sheets: relative paths.
    note: stands above all, also where the page's script does not run.
    """
    common, images = _split([_shown(record) for record in records])
    failed = [asdict(failure) for failure in failures]
    data = {
        "title": title,
        "total": total,
        "labels": LABELS,
        "settings": SETTINGS,
        "common": common,
        "images": images,
        "failures": failed[:FAILURE_LIMIT],
        "failed": len(failed),
        "sheets": list(sheets),
    }
    style, script = _template("gallery.css"), _template("gallery.js")
    parts = {
        "title": html.escape(title),
        "policy": f"default-src 'none'; img-src 'self' file:; style-src '{source_hash(style)}'; "
        f"script-src '{source_hash(script)}'; base-uri 'none'; form-action 'none'",
        "note": "" if note is None else f'<p id="unfinished">{html.escape(note)}</p>',
        "style": style,
        "script": script,
        "data": embeddable_json(data),
    }
    # In one pass, so that a placeholder's look-alike in a title or prompt is left alone.
    return _PLACEHOLDER.sub(lambda match: parts[match[1]], _template("gallery.html"))


def embeddable_json(value: Any) -> str:
    """ASCII JSON that cannot end the script element it stands in, nor begin a comment there."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _shown(record: Record) -> dict[str, Any]:
    """A record, flat, reduced to what the page shows."""
    flat = dict(record)
    flat["model"], flat["model_digest"] = record["model"]["name"], record["model"]["digest"]
    for key, told in (("loras", _lora), ("embeddings", _name)):
        if isinstance(uses := record.get(key), list):
            flat[key] = ", ".join(map(told, uses))
    if isinstance(labels := record.get("meta"), dict):
        flat["meta"] = ", ".join(f"{name}: {value}" for name, value in labels.items())
    if "vae" in record:
        flat["vae"] = _name(record["vae"])
    render_s = record.get("timings_s", {}).get("render")
    if render_s is not None:
        flat["render_s"] = round(render_s, 2)
    if record["seed"] >= _EXACT_IN_BROWSERS:
        flat["seed"] = str(record["seed"])
    return {key: flat[key] for key in LABELS if key in flat}


def _name(use: Any) -> str:
    """The name of a file, of a record that anybody may have written."""
    return str(use.get("name")) if isinstance(use, dict) else str(use)


def _lora(use: Any) -> str:
    """A LoRA and its weight, where it is not 1."""
    weights = [use.get("weight"), use.get("text_weight")] if isinstance(use, dict) else [1, 1]
    if weights[0] != weights[1]:
        return f"{_name(use)} {weights[0]} (text {weights[1]})"
    return _name(use) if weights[0] == 1 else f"{_name(use)} {weights[0]}"


def _split(
    images: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Fields that are the same in all images, said once, and the rest of each image."""
    if not images:
        return {}, []
    common = {
        key: value
        for key, value in images[0].items()
        if all(key in image and image[key] == value for image in images)
    }
    return common, [{k: v for k, v in image.items() if k not in common} for image in images]


def _template(name: str) -> str:
    return files("jobs.report").joinpath(name).read_text("utf-8")


def source_hash(source: str) -> str:
    """An inline element's content as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
