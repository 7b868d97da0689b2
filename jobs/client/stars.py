"""Lists of starred pictures, as the gallery saves them: a path in the job's folder a line."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from jobs.errors import InputError
from jobs.folder.layout import JobFolder
from jobs.folder.records import is_image_path, read_records
from jobs.formatting import counted, quote, reason

MAX_STARS_BYTES = 64 * 2**20
"""A list of stars: a path of usual length for each of a million pictures."""

MOST_NAMED = 5
"""Paths that a message names."""

_HEAD = "# sdbatch stars of "


def read_stars(path: Path, job: str) -> frozenset[str]:
    """The paths in a list of stars, at least one. Empty lines, and others that begin with a #, say
    nothing.

    Raises `InputError` if it cannot be read, is another job's, or has lines that are no paths.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_STARS_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from None
    if len(data) > MAX_STARS_BYTES:
        raise InputError(f"{path} has more than {MAX_STARS_BYTES:,} bytes: it is no list of stars")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text in UTF-8") from None
    stars = set()
    for number, line in enumerate(lines, 1):
        if line.startswith(_HEAD) and (of := line.removeprefix(_HEAD).strip()) != job:
            raise InputError(f"{path}, line {number}: stars of {quote(of)}, and this is {job}")
        star = line.strip()
        if not star or star.startswith("#"):
            continue
        if not is_image_path(star):
            raise InputError(
                f"{path}, line {number}: {quote(star)} is no picture; expected a path such as "
                "images/000000-s42-0123456789abcdef.png"
            )
        stars.add(star)
    if not stars:
        raise InputError(f"{path} names no picture")
    return frozenset(stars)


def check_stars(folder: JobFolder, stars: Collection[str]) -> None:
    """Raises `InputError` with the paths that no record of the job has, and `StoreError`."""
    unknown = set(stars)
    for record in read_records(folder):
        unknown.discard(record["path"])
        if not unknown:
            return
    named = ", ".join(sorted(unknown)[:MOST_NAMED])
    more = f" and {len(unknown) - MOST_NAMED:,} more" if len(unknown) > MOST_NAMED else ""
    pictures = counted(len(unknown), "starred picture")
    raise InputError(f"{folder.url} does not have {pictures}: {named}{more}")
