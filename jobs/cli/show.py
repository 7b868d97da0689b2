"""The subcommand that shows what is written in pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from jobs.cli.options import json_option
from jobs.errors import InputError
from jobs.formatting import reason
from jobs.limits import MAX_IMAGE_BYTES
from jobs.terminal.console import Terminal


@click.command()
@click.argument(
    "images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@json_option
@click.pass_obj
def show(terminal: Terminal, images: tuple[Path, ...]) -> None:
    """Show how pictures were made: the record that each file of a job holds.

    \b
    Example:
      sdbatch show out/shapes-0c7c52d1c2fe/images/000000-s42-*.png
    """
    from jobs.pictures.embedded import read_record

    found, problems = [], []
    for path in images:
        try:
            record = read_record(content(path))
        except ValueError as error:
            problems.append(f"{path}: {error}")
            continue
        found.append({"file": str(path), "record": record})
        if not terminal.json:
            if len(found) > 1:
                terminal.say("")
            lines = [("file", str(path)), *_lines(record)]
            width = max(len(label) for label, _ in lines)
            for label, text in lines:
                terminal.say(f"{label:{width}}  {text}".rstrip())
    if problems:
        raise InputError("\n".join(problems))
    if terminal.json:
        terminal.document({"images": found})


def content(path: Path) -> bytes:
    """The bytes of a file, one more than are read of a picture at most. Raises `ValueError`."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {reason(error)}") from None


def _lines(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A line for each value, those of mappings under their names with dots between."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            yield prefix + name, " ".join(value.split())
        else:
            yield prefix + name, json.dumps(value, ensure_ascii=False)
