"""Labels: words of a prompt for itself, such as an article number, that come back in its records.

`${sku}` in a prompt stands for its label sku, as if that had been written there; `$${` is a `${`.
Prompts without labels keep such texts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from jobs.formatting import quote, suggest

Labels = tuple[tuple[str, str], ...]
"""Names and values, as entries and tasks keep them."""

PREFIX = "meta."
"""Beginning of columns of labels, and of placeholders in names of images."""

NAME = r"[A-Za-z0-9_-]{1,40}"

_PLACE = re.compile(r"(?<!\$)\$(?:\$\{|\{(?:meta\.)?(?P<name>[^{}$]*)\})")


def merged(*given: Mapping[str, Any]) -> Labels:
    """The labels of a prompt. given: settings of all places, the strongest last."""
    labels: dict[str, str] = {}
    for settings in given:
        labels |= settings.get("meta") or {}
    return tuple(labels.items())


def filled_in(text: str, labels: Labels, *, dynamic: bool) -> str:
    """A prompt with its labels' values. dynamic: other names are variables, and kept.

    Raises `ValueError` for a name that is none of the labels.
    """
    if not labels or "${" not in text:
        return text
    known = dict(labels)

    def value(match: re.Match[str]) -> str:
        name = match["name"]
        if name in known:
            return known[name]
        if dynamic:
            return match[0]
        if name is None:
            return "${"
        close = suggest(name, known)
        hint = f"did you mean '{close}'?" if close else f"it has {', '.join(known)}"
        raise ValueError(f"has no label {quote(name)}; {hint} (a '${{' itself is written '$${{')")

    return _PLACE.sub(value, text)


def unfilled(text: str, labels: Labels) -> str:
    """A text that `filled_in` gives this one for."""
    return text.replace("${", "$${") if labels else text


def from_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its columns `meta.name` as labels. Values of JSON become texts."""
    values = {key: value for key, value in row.items() if not key.startswith(PREFIX)}
    labels = {k.removeprefix(PREFIX): v for k, v in row.items() if k.startswith(PREFIX)}
    given = values.get("meta")
    if isinstance(given, Mapping) or labels:
        labels = {**(given if isinstance(given, Mapping) else {}), **labels}
        values["meta"] = {name: _text(value) for name, value in labels.items() if value is not None}
    return values


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return str(value) if number else value
