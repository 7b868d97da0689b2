"""Reads how a picture was made: our own record, or what other programs write into pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import InputError
from jobs.image_settings import SETTINGS
from jobs.importing.others import entry_of
from jobs.pictures.embedded import read_record
from jobs.pictures.rules import PictureError, opened
from sd_core.spec import ADDED_SETTINGS

_TEXTS = ("prompt", "negative")


@dataclass(frozen=True)
class Imported:
    """An entry for a manifest's prompts. by: the program that made the picture. model: as that
    called it; None where it does not say. notes: what the entry does not say, for people.
    """

    entry: Mapping[str, Any]
    by: str
    model: str | None = None
    notes: list[str] = field(default_factory=list)


def read_picture(data: bytes) -> Imported:
    """How the picture in a file was made. Raises `ValueError` if it does not say, or is none, and
    `InputError` without sd-parsers, which reads those of other programs.
    """
    try:
        return _of_record(read_record(data))
    except ValueError as error:
        if "holds no record" not in str(error):
            raise
    try:
        from sd_parsers import ParserManager
    except ModuleNotFoundError:
        raise InputError(
            "it is not of sdbatch, and pictures of other programs need sd-parsers, which is not "
            "installed: pip install 'sdbatch[import]'"
        ) from None
    try:
        with opened(data) as image:
            size = image.size
            found = ParserManager().parse(image)
    except PictureError as error:
        raise ValueError(f"it {error}") from None
    except Exception as error:  # whatever a stranger's metadata makes of the library
        raise ValueError(f"what it says of itself cannot be read: {error}") from None
    if found is None or not found.samplers:
        raise ValueError("it does not say how it was made")
    entry, notes = entry_of(found, size)
    models = sorted(str(model) for model in found.models)
    return Imported(entry, found.generator.value, models[0] if models else None, notes)


def _of_record(record: Mapping[str, Any]) -> Imported:
    """The entry of one of our own pictures."""
    if not isinstance(record.get("prompt"), str):
        raise ValueError("its record has no prompt")
    entry = {name: record[name] for name in _TEXTS if record.get(name)}
    entry |= {
        name: record[name]
        for name in SETTINGS
        if name in record and record[name] != ADDED_SETTINGS.get(name)
    }
    if record.get("karras") is False:
        del entry["karras"]
    if not record.get("eta"):
        entry.pop("eta", None)
    entry["seed"] = record.get("seed")
    if isinstance(labels := record.get("meta"), Mapping):
        entry["meta"] = dict(labels)
    notes = []
    for kind, key in (("LoRA", "loras"), ("embeddings", "embeddings"), ("VAE", "vae")):
        if key in record:
            notes.append(f"its {kind} must be named under {key}: {record[key]!s:.200}")
    if "init_image" in record:
        entry.pop("strength", None)
        notes.append("its init image must be named under init_image, with its strength")
    model = record.get("model")
    name = model.get("name") if isinstance(model, Mapping) else None
    return Imported(entry, "sdbatch", name if isinstance(name, str) else None, notes)
