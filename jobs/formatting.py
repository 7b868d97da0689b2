"""Numbers in sentences."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


def counted(number: int, noun: str, many: str | None = None) -> str:
    """`1 image`, `2,000 images`. many: the noun's plural where that does not end with an s."""
    return f"{number:,} {agreeing(number, noun, many or f'{noun}s')}"


def agreeing(number: int, one: str, many: str) -> str:
    """The word that goes with the number, such as `was` or `were`."""
    return one if number == 1 else many


_MAX_SHOWN = 60


def shorten(text: str) -> str:
    """At most 60 characters of a text, on one line and printable, for use in a message."""
    shown = text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def quote(text: str) -> str:
    """A text in quotes, shortened."""
    return f"'{shorten(text)}'"


def found(value: Any) -> str:
    """How a message names a value that was found in a file."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return quote(value) if value else "an empty text"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list" if value else "an empty list"
    try:
        return shorten(str(value))
    except ValueError:  # Python does not print integers of more than 4,300 digits
        return "a number of thousands of digits"


def suggest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` is probably a misspelling of."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower()[:_MAX_SHOWN], names, n=1, cutoff=0.6)
    return names[close[0]] if close else None


def one_of(names: Sequence[str]) -> str:
    """`one of a, b, c`."""
    return f"one of {', '.join(names)}"


def reason(error: OSError) -> str:
    """Why, without the path, which the message has already."""
    why = error.strerror or str(error)
    return why[:1].lower() + why[1:]


def size(count_bytes: int) -> str:
    """A size for people: `3.1 MB`."""
    value, unit = float(count_bytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.3g} {unit}"


def unknown_model(name: str, names: Iterable[str]) -> str:
    """Message about a model that is not among these. names: of the model list."""
    known = dict.fromkeys(("demo", *names))
    close = suggest(name, known)
    hint = f"did you mean '{close}'?" if close else f"known are {', '.join(known)}"
    return (
        f"model {quote(name)} is not in the model list; {hint} (SDBATCH_MODELS names the list; "
        "--model gives a checkpoint for one run)"
    )
