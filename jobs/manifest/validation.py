"""From what pydantic finds wrong to problems with a place and the words for it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from jobs.budget import MOST_HOURS, MOST_MONEY
from jobs.formatting import found, one_of, quote, shorten, suggest
from jobs.image_settings import FORMS, IMAGE_SETTINGS
from jobs.limits import MAX_IMAGES, MAX_LABEL_CHARS, MAX_LABELS, MAX_PROMPT_CHARS
from jobs.manifest.file_forms import LoraFile, LoraWeights
from jobs.manifest.problems import Path, Place, ProblemList
from jobs.manifest.scalars import unreadable
from jobs.manifest.schema import KEYS
from jobs.manifest.yaml_file import Node
from jobs.webhook import MAX_URL_CHARS
from sd_core.sampler_table import SAMPLERS
from sd_core.spec import MOST_EMBEDDINGS, MOST_LORA_WEIGHT, MOST_LORAS

_TAGS = ("(one)", "(list)", "(range)")  # of the forms of `seeds`, in pydantic's paths

_OTHER_NAMES = {  # other programs' names -> ours
    "cfg": "guidance",
    "cfg_scale": "guidance",
    "scale": "guidance",
    "guidance_scale": "guidance",
    "negative_prompt": "negative",
    "num_inference_steps": "steps",
    "ddim_steps": "steps",
    "ddim_eta": "eta",
    "h": "height",
    "w": "width",
    "scheduler": "sampler",
    "sampler_name": "sampler",
    "sampling_method": "sampler",
    "schedule_type": "schedule",
    "subseed": "variation_seed",
    "subseed_strength": "variation_strength",
    "ensd": "eta_noise_seed_delta",
    "sigmas": "schedule",
    "pag": "pag_scale",
    "pag_applied_layers": "pag_layers",
    "n_iter": "seeds",
    "n_samples": "seeds",
    "batch_size": "seeds",
    "num_images": "seeds",
    "denoising_strength": "strength",
    "prompt_strength": "strength",
    "image": "init_image",
    "init": "init_image",
    "init_img": "init_image",
    "mask_image": "mask",
    "outdir": "store",
}


_NUMBERS = re.compile(r"\s*\d+(\s*[,;]\s*\d+)+\s*")

_WHOLE = "a whole number within"
_WEIGHT = f"a number within -{MOST_LORA_WEIGHT:g} to {MOST_LORA_WEIGHT:g}"
EXPECTED = {
    "version": "1, the version of the manifest format",
    "name": "a name of letters, digits, - _ and .",
    "model": "a name from the model list (letters, digits, . _ - : @ /), or demo",
    "reproducible": "exact or fast",
    "budget": "a mapping of hours, money with price, images",
    "hours": f"a number above 0, at most {MOST_HOURS:,.0f}",
    "money": f"a number above 0, at most {MOST_MONEY:,.0f}",
    "price": f"a number above 0, at most {MOST_MONEY:,.0f}",
    "images": "a whole number of at least 1",
    "defaults": "a mapping of settings",
    "matrix": "a mapping of settings to lists of values",
    "output": "a mapping of store, format, quality, name, webhook, thumbnails, dataset",
    "prompts": "a list of prompts",
    "prompt": f"a text of at most {MAX_PROMPT_CHARS:,} characters",
    "negative": f"a text of at most {MAX_PROMPT_CHARS:,} characters",
    "file": "the path of a .txt, .csv or .jsonl file",
    "from": "a text that is in every prompt",
    "to": "a list of texts to put there",
    "seeds": f"a seed ({_WHOLE} 0 to 2^64 - 1), a list of seeds, {{start, count}}, or random",
    "seed": f"{_WHOLE} 0 to 2^64 - 1, or random",
    "start": f"{_WHOLE} 0 to 2^64 - 1, or random",
    "variation": "a mapping of seed and strength",
    "pag": "a mapping of scale and layers",
    "count": f"{_WHOLE} 1 to {MAX_IMAGES:,}",
    **{name: setting.expected for name, setting in IMAGE_SETTINGS.items()},
    "scale": IMAGE_SETTINGS["pag_scale"].expected,
    "layers": IMAGE_SETTINGS["pag_layers"].expected,
    "init_image": "the path of a PNG, JPEG or WebP file",
    "mask": "the path of a PNG, JPEG or WebP file",
    "loras": "a list of LoRA: names, or mappings of name, weight, text_weight",
    "embeddings": "a list of names or paths of embeddings",
    "meta": "a mapping of names to texts, the labels",
    "vae": "a name or path of a VAE, or model for the model's own",
    "vaes": "a mapping of names to paths",
    "weight": _WEIGHT,
    "text_weight": _WEIGHT,
    "weights": f"a list of weights, each {_WEIGHT}",
    "path": "the path of a file",
    "sha256": "64 hex digits",
    "dynamic": "one of none, random, combinatorial",
    "wildcards": "the path of a folder",
    "store": "a folder or s3://bucket/prefix",
    "format": "one of png, jpeg, webp",
    "dataset": "webdataset",
    "quality": f"{_WHOLE} 1 to 100",
    "webhook": f"an http:// or https:// URL of at most {MAX_URL_CHARS:,} characters",
}
"""Allowed values in the words of error messages, by key."""

_A_LORA = "a name or path of a LoRA, or a mapping of name, weight, text_weight"

_A_LABEL = f"a text of at most {MAX_LABEL_CHARS:,} characters"
_A_LABEL_NAME = "1 to 40 letters, digits, - and _"

_A_SECTION = "a mapping of names to paths"
_A_FILE = "a path, or a mapping of path and sha256"

_AXES = {
    "seeds": EXPECTED["seeds"],
    "prompt": "a mapping of from, a text, and to, a list of texts",
    "loras": "a list of lists of LoRA, or a mapping of name and weights",
}
"""The same for keys of a matrix that are no lists of values."""


def explain(
    error: ValidationError, place: Place, keys: Sequence[str], problems: ProblemList
) -> None:
    """Add every mistake in `error` to `problems`. keys: those of the outermost mapping."""
    for item in error.errors(include_url=False, include_context=False):
        path = tuple(part for part in item["loc"] if part not in _TAGS)
        if path[-1] == "[key]":
            message = f"{quote(str(path[-2]))} is no name of a label; expected {_A_LABEL_NAME}"
            problems.at(place, path[:-1], message, of_key=True)
        elif item["type"] == "extra_forbidden":
            problems.at(place, path, _unknown_key(path, item["input"], keys), of_key=True)
        elif item["type"] == "missing":
            key = str(path[-1])
            expected = _A_LORA if key == "name" else EXPECTED[key]
            message = f"{key} is missing; expected {expected}"
            problems.at(place, path[:-1], message)
        else:
            problems.at(place, path, _wrong_value(path, item["input"]))


def without_errors(values: dict[str, Any], error: ValidationError) -> dict[str, Any]:
    """Values that the schema accepted, so that they can be checked further beside the mistakes.

    Of the mappings at the top (defaults, matrix, output) only the wrong keys are left out.
    """
    kept = dict(values)
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        key, *inner = item["loc"]
        section = kept.get(str(key))
        if key in ("defaults", "matrix", "output") and inner and isinstance(section, dict):
            kept[str(key)] = {name: value for name, value in section.items() if name != inner[0]}
        else:
            kept.pop(str(key), None)
    return kept


def _wrong_value(path: Path, value: Any) -> str:
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    if (key == "seeds" and isinstance(path[-1], int)) or path[-2:] == ("variation", "seed"):
        key = "variation_seed"  # which are none to be drawn
    if path[0] == "embeddings" or path[:2] == ("defaults", "embeddings"):
        return _wrong_embedding(path, value)
    if "meta" in path[:2]:
        return _wrong_label(path, value)
    if path[0] == "vaes" and len(path) == 2 and key not in ("path", "sha256"):
        return f"found {found(value)}, expected {_A_FILE}"
    if "loras" in path[:2]:
        return _wrong_lora(path, key, value)
    if key in FORMS and isinstance(value, dict):
        return _wrong_number(FORMS[key], value)
    expected = EXPECTED[key]
    if path[0] == "matrix" and len(path) == 2:
        expected = _AXES.get(key, f"a list of values, each {expected}")
    elif isinstance(value, str) and len(value) > 1000:
        return f"found a text of {len(value):,} characters, expected {expected}"
    bad = unreadable(value) if isinstance(value, str) else None
    if bad is not None:
        return f"character {bad} is not allowed"
    return f"found {found(value)}, expected {expected}{_advice(key, value)}"


def _wrong_number(names: Sequence[str], value: dict[Any, Any]) -> str:
    """For a mapping of numbers that has another key, or something that is no number."""
    other = next((name for name in value if name not in names), None)
    if other is not None:
        return f"unknown key {quote(str(other))}; expected one of {', '.join(names)}"
    name = next(name for name, number in value.items() if type(number) not in (int, float))
    return f"{name}: found {found(value[name])}, expected a number"


def _wrong_label(path: Path, value: Any) -> str:
    """For a value under `meta`."""
    if path[-1] != "meta":
        return f"found {found(value)}, expected {_A_LABEL}"
    if isinstance(value, dict):
        return f"found {len(value):,} labels, expected at most {MAX_LABELS}"
    return f"found {found(value)}, expected {EXPECTED['meta']}"


def _wrong_embedding(path: Path, value: Any) -> str:
    """For a value under `embeddings`: of a prompt, or of the manifest itself."""
    listed = isinstance(value, list) and isinstance(path[-1], str)
    if listed and len(value) > MOST_EMBEDDINGS:
        return f"found {len(value):,} embeddings, expected at most {MOST_EMBEDDINGS}"
    key = path[-1]
    if isinstance(key, int):
        expected = "a name or path of an embedding"
    elif key in ("path", "sha256"):
        expected = EXPECTED[key]
    elif key == "embeddings":
        expected = _A_SECTION if listed else EXPECTED[key]
    else:
        expected = _A_FILE
    return f"found {found(value)}, expected {expected}"


def _wrong_lora(path: Path, key: str, value: Any) -> str:
    """For a value under `loras`: of a prompt, of the matrix, or of the manifest itself."""
    if path == ("matrix", "loras"):
        expected = _AXES["loras"]
    elif key == "loras" and not isinstance(path[-1], int):
        expected = EXPECTED["loras"]
        if isinstance(value, list) and len(value) > MOST_LORAS:
            return f"found {len(value):,} LoRA, expected at most {MOST_LORAS}"
        if isinstance(value, list):  # of the manifest itself
            expected = _A_SECTION
    elif path[0] == "loras" and len(path) == 2 and isinstance(path[1], str):
        expected = _A_FILE
    elif key in ("path", "sha256", "weight", "text_weight"):
        expected = EXPECTED[key]
    elif key == "weights":
        expected = _WEIGHT if isinstance(path[-1], int) else EXPECTED[key]
    else:
        expected = _A_LORA
    return f"found {found(value)}, expected {expected}"


def _advice(key: str, value: Any) -> str:
    """Advice on values that people bring from other programs; mostly empty."""
    if key == "sampler" and isinstance(value, str):
        close = suggest(value.replace("-", "_").replace(" ", "_"), SAMPLERS)
        return f"; did you mean '{close}'?" if close is not None else ""
    if key == "seeds" and isinstance(value, str) and _NUMBERS.fullmatch(value):
        return "; several are written [1, 2, 3], in a .csv file with spaces between them"
    if key in ("init_image", "mask") and isinstance(value, list):
        return "; a prompt has one: list them in a .csv file, one a row"
    return ""


def text_taken_apart(node: Node, keys: Sequence[str]) -> str | None:
    """Message about `a cat: very fluffy`, a text that YAML takes for a mapping of one key; None for
    a mapping whose key is one of `keys`, or nearly.
    """
    if not isinstance(node.value, dict) or len(node.value) != 1:
        return None
    ((key, value),) = node.value.items()
    known = key in keys or any(key in names for names in KEYS.values())
    if known or value.text is None or known_key(key, keys) is not None:
        return None
    text = json.dumps(f"{key}: {value.text}".strip(), ensure_ascii=False)
    return f"{quote(key)} is read as a key, for a ': ' follows; quote the text: {shorten(text)}"


def known_key(key: str, keys: Sequence[str]) -> str | None:
    """The one of `keys` that was probably meant, by another program's name or misspelt."""
    other = _OTHER_NAMES.get(key.lower().replace("-", "_").replace(" ", "_"))
    return other if other in keys else suggest(key, keys)


def _keys_inside(path: Path, inside: str) -> tuple[str, ...]:
    """The keys of the mapping that the last key of `path` is in. inside: the key of that."""
    if path[0] in ("loras", "embeddings", "vaes") and inside != path[0]:
        return tuple(LoraFile.__annotations__)
    if path[:-1] == ("matrix", "loras"):
        return tuple(LoraWeights.__annotations__)
    return KEYS.get(inside, ("from", "to"))


def _unknown_key(path: Path, value: Any, top_keys: Sequence[str]) -> str:
    key = str(path[-1])
    inside = next((part for part in reversed(path[:-1]) if isinstance(part, str)), None)
    keys = top_keys if inside is None else _keys_inside(path, inside)
    message = f"unknown key {quote(key)}"
    if key == "<<":
        return (
            f"{message}; manifests have no merge keys: what all prompts share goes under defaults"
        )
    if key == "prompt" and "file" in top_keys and inside is None:
        return "prompt and file are both given; take one of them out"
    home = next((name for name in ("defaults", "output") if key in KEYS[name]), None)
    if home == "output" or (home in top_keys and inside is None):
        return f"{message} here; it goes under {home}"
    close = known_key(key, keys)
    if close is not None:
        return f"{message}; did you mean '{close}'?"
    if value is None or not re.fullmatch(r"[\w-]+", key):
        return f"{message}; a text with ': ' in it needs quotes, in braces also one with a comma"
    return f"{message}; expected {one_of(keys)}"
