"""Writes entries as a manifest: what all have in common once, the rest of each below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from jobs.importing.read import Imported

_OWN = ("prompt", "negative", "seed", "meta")
"""Keys of an entry that are never in the defaults."""

HEADER = "# Made from pictures by sdbatch import.\n"


def manifest_of(pictures: Sequence[tuple[str, Imported]], name: str, model: str | None) -> str:
    """YAML. pictures: names of files, and how they were made. name: of the job. model: of the model
    list; None for the demo model.
    """
    entries = [dict(imported.entry) for _, imported in pictures]
    common = _common(entries)
    head: dict[str, Any] = {"version": 1, "name": name}
    if model is not None:
        head["model"] = model
    if common:
        head["defaults"] = common
    text = [HEADER, yaml.safe_dump(head, sort_keys=False, allow_unicode=True), "prompts:\n"]
    for (file, imported), entry in zip(pictures, entries, strict=True):
        text += [f"  # {line}\n" for line in _comments(file, imported)]
        own = {key: value for key, value in entry.items() if key not in common}
        dumped = yaml.safe_dump([own], sort_keys=False, allow_unicode=True, width=100)
        text += [f"  {line}\n" for line in dumped.removesuffix("\n").split("\n")]
    return "".join(text)


def _common(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings that all entries have alike."""
    first, *others = entries
    return {
        key: value
        for key, value in first.items()
        if key not in _OWN and others and all(other.get(key) == value for other in others)
    }


def _comments(file: str, imported: Imported) -> list[str]:
    """Lines about one picture, each without a break that would end the comment."""
    model = "" if imported.model is None else f", model {imported.model}"
    lines = [f"{file}, by {imported.by}{model}", *imported.notes]
    printable = ("".join(c if c.isprintable() else " " for c in line) for line in lines)
    return [" ".join(line.split())[:200] for line in printable]
