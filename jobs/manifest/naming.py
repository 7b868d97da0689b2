"""Names of images and jobs: templates such as `{prompt}/{index:06d}-s{seed}`, and slugs."""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from collections import defaultdict
from collections.abc import Mapping

from jobs.formatting import quote, suggest
from jobs.limits import MAX_IMAGES
from jobs.manifest.labels import NAME, PREFIX, Labels
from sd_core.sampler_table import SAMPLERS
from sd_core.spec import MAX_SIDE, MAX_STEPS, SEED_LIMIT, Sampling

DEFAULT_TEMPLATE = "{index:06d}-s{seed}"

SLUG_CHARS = 40
"""Characters of a prompt in a name."""

MAX_PART_BYTES = 220
"""Bytes of a name between slashes, in UTF-8: file systems allow 255, digest and extension follow.
"""

_NUMBERS = ("index", "seed", "steps", "width", "height")
PLACEHOLDERS = (*_NUMBERS, "prompt", "sampler", "guidance", "strength", "name", "model")

_WIDTH = re.compile(r"0[1-9][0-9]?d?|d")  # padded with zeros: spaces have no place in names
_UNSAFE = re.compile(r"[^A-Za-z0-9._/-]")
_LABEL = re.compile(rf"{re.escape(PREFIX)}{NAME}")
_WIDEST: dict[str, int | str] = {
    "index": MAX_IMAGES - 1,
    "seed": SEED_LIMIT - 1,
    "steps": MAX_STEPS,
    "width": MAX_SIDE,
    "height": MAX_SIDE,
    "prompt": "x" * 4 * SLUG_CHARS,  # a character is up to 4 bytes
    "sampler": max(SAMPLERS, key=len),
    "guidance": f"{-1.23456e-300:g}",
    "strength": f"{1.23456e-300:g}",
    "name": "x" * 64,
    "model": "x" * SLUG_CHARS,
}


def check_template(template: str) -> str | None:
    """Flaw of a template of output names; None if there is none."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        return f"{quote(template)} is no template: {error}"
    for literal, field, width, conversion in parts:
        unsafe = _UNSAFE.search(literal)
        if unsafe:
            return (
                f"{quote(unsafe[0])} is not allowed in names; expected letters, digits, - _ . / "
                f"and {_placeholders()}"
            )
        if field is None:
            continue
        if field not in PLACEHOLDERS and not _LABEL.fullmatch(field):
            close = suggest(field, PLACEHOLDERS)
            hint = f"; did you mean {{{close}}}?" if close else ""
            return (
                f"unknown placeholder {quote(f'{{{field}}}')}{hint}; allowed are {_placeholders()}"
            )
        if conversion or (width and not (field in _NUMBERS and _WIDTH.fullmatch(width))):
            return (
                f"{quote(f'{{{field}}}')} has a format that is not allowed; only numbers have one, "
                "a width of at most two digits such as {index:06d}"
            )
    # Labels of a prompt that is not known yet; `label_flaw` looks at the real ones.
    widest = template.format(**_WIDEST, meta=_Attributes(defaultdict(lambda: "x")))
    for part in widest.split("/"):
        if not part:
            return f"{quote(template)} starts or ends with / or has two in a row"
        if part.startswith("."):
            return f"{quote(template)} has a part that starts with a dot"
        if len(part) > MAX_PART_BYTES:
            return f"{quote(template)} gives names longer than {MAX_PART_BYTES} bytes"
    return None


class _Attributes:
    """Values as attributes, for `str.format`. None of Python's own is found, as `__class__` is."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def __getattribute__(self, name: str) -> str:
        values: Mapping[str, str] = object.__getattribute__(self, "_values")
        return values[name]


@functools.lru_cache(maxsize=1024)
def label_flaw(template: str, labels: Labels) -> str | None:
    """Why a checked template cannot name images of a prompt with these labels; None if it can."""
    names = [name for name, _ in labels]
    for _, field, _, _ in string.Formatter().parse(template):
        if field is None or not field.startswith(PREFIX):
            continue
        name = field.removeprefix(PREFIX)
        if name not in names:
            return f"has {quote(f'{{{field}}}')}, and this prompt has no label {quote(name)}"
    widest = template.format(**_WIDEST, meta=_slugs(labels))
    if any(len(part.encode()) > MAX_PART_BYTES for part in widest.split("/")):
        return f"{quote(template)} gives names longer than {MAX_PART_BYTES} bytes with its labels"
    return None


def _slugs(labels: Labels) -> _Attributes:
    return _Attributes({name: slug(value) for name, value in labels})


def fill(
    template: str,
    job: str,
    index: int,
    prompt: str,
    sampling: Sampling,
    model: str,
    labels: Labels = (),
) -> str:
    """A checked template with the values of one image."""
    if template == DEFAULT_TEMPLATE:  # twice as fast, and nearly all names are this one
        return f"{index:06d}-s{sampling.seed}"
    return template.format(
        index=index,
        seed=sampling.seed,
        steps=sampling.steps,
        width=sampling.width,
        height=sampling.height,
        prompt=slug(prompt),
        sampler=sampling.sampler,
        guidance=f"{sampling.guidance:g}",
        strength=f"{sampling.strength:g}",
        name=job,
        model=slug(model),
        meta=_slugs(labels),
    )


@functools.lru_cache(maxsize=1024)  # a prompt's images follow each other
def slug(text: str) -> str:
    """At most 40 characters of a text as a part of a file name: letters and digits of any script.

    `A red circle, 35mm!` becomes `a-red-circle-35mm`.
    """
    words = unicodedata.normalize("NFKC", text[: 4 * SLUG_CHARS]).lower()
    safe = "".join(c if c.isalnum() else " " for c in words)
    return "-".join(safe.split())[:SLUG_CHARS].strip("-") or "untitled"


def job_name(stem: str) -> str:
    """A job's name from its manifest's file name: letters, digits, - _ and . only."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-_.")[:64] or "job"


def _placeholders() -> str:
    return ", ".join(f"{{{name}}}" for name in (*PLACEHOLDERS, "meta.…"))
