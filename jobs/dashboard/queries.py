"""Values of a query string, bounded where they come in."""

from __future__ import annotations

import re

from starlette.requests import Request

from jobs.errors import InputError
from jobs.formatting import quote

MAX_SEARCH_CHARS = 200
MOST_IMAGES = 2**31

_NUMBER = re.compile("[0-9]{1,10}")


def number(request: Request, name: str, otherwise: int, most: int) -> int:
    """A whole number within 0 to `most`. Raises `InputError`."""
    text = request.query_params.get(name)
    return otherwise if text is None else _number(name, text, most)


def numbers(request: Request, name: str, most: int) -> list[int]:
    """Images between commas, at most so many. Raises `InputError`."""
    texts = request.query_params.get(name, "").split(",", most)
    if len(texts) > most:
        raise InputError(f"{name}: expected at most {most:,} numbers")
    return [_number(name, text, MOST_IMAGES) for text in texts if text]


def search(request: Request) -> str:
    """Text that names of jobs are to have in them, in lower case. Raises `InputError`."""
    text = request.query_params.get("search", "").strip()
    if len(text) > MAX_SEARCH_CHARS:
        raise InputError(f"search: expected at most {MAX_SEARCH_CHARS} characters")
    return text.casefold()


def _number(name: str, text: str, most: int) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > most:
        raise InputError(f"{name}: found {quote(text)}, expected a whole number within 0 to {most}")
    return int(text)
