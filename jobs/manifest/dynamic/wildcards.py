"""Wildcard files: a folder of lists, whose lines may be templates themselves.

colours.txt         __colours__: a value a line, `#` begins a comment line
animals/cats.txt    __animals/cats__
animals.yaml        {cats: [a tabby], dogs: [a pug]}: __animals/cats__, __animals/dogs__
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from jobs.formatting import reason, suggest
from jobs.manifest.dynamic.template import TemplateError

MOST_FILES = 10_000
MOST_BYTES = 32 * 2**20
MOST_VALUES = 1_000_000
_DEPTH = 8


class Wildcards:
    """Lists by name. folder: None where a manifest names none."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._found: dict[str, tuple[str, ...]] = {}

    def values(self, name: str, offset: int = 0) -> tuple[str, ...]:
        """The values of a wildcard, each once. Raises `TemplateError` where there are none."""
        if name not in self._found:
            self._found[name] = self._look(name, offset)
        return self._found[name]

    def _look(self, name: str, offset: int) -> tuple[str, ...]:
        if self._folder is None:
            message = f"__{name}__ is a wildcard, and the manifest names no wildcards folder"
            raise TemplateError(message, offset)
        names = [one for one in self._lists if fnmatch.fnmatchcase(one, name)]
        if not names:
            close = suggest(name, self._lists)
            hint = f"; did you mean '__{close}__'?" if close else ""
            raise TemplateError(f"there is no wildcard __{name}__ in {self._folder}{hint}", offset)
        values = tuple(dict.fromkeys(value for one in names for value in self._lists[one]))
        if not values:
            raise TemplateError(f"wildcard __{name}__ has no values", offset)
        return values

    @cached_property
    def _lists(self) -> dict[str, list[str]]:
        assert self._folder is not None
        found: dict[str, list[str]] = {}
        files, size, count = 0, 0, 0
        for path in sorted(self._folder.rglob("*")):
            if path.suffix.lower() not in (".txt", ".yaml", ".yml") or not path.is_file():
                continue
            files, size = files + 1, size + path.stat().st_size
            if files > MOST_FILES or size > MOST_BYTES:
                raise TemplateError(
                    f"{self._folder} holds more than {MOST_FILES:,} wildcard files, or more than "
                    f"{MOST_BYTES // 2**20} MiB of them"
                )
            name = path.relative_to(self._folder).with_suffix("").as_posix()
            for own, values in self._file(path, name):
                found.setdefault(own, []).extend(values)
                count += len(values)
                if count > MOST_VALUES:
                    message = f"{self._folder} holds more than {MOST_VALUES:,} values"
                    raise TemplateError(message)
        return found

    def _file(self, path: Path, name: str) -> Iterator[tuple[str, list[str]]]:
        assert self._folder is not None
        if not path.resolve().is_relative_to(self._folder.resolve()):
            raise TemplateError(f"{path} leads out of the wildcards folder")
        try:
            text = path.read_text("utf-8-sig")
            if path.suffix.lower() == ".txt":
                lines = (line.strip() for line in text.splitlines())
                yield name, [line for line in lines if line and not line.startswith("#")]
            else:
                yield from _lists_of(yaml.safe_load(text), name, path, 0)
        except OSError as error:
            raise TemplateError(f"{path} cannot be read: {reason(error)}") from None
        except (UnicodeDecodeError, yaml.YAMLError, RecursionError):
            raise TemplateError(f"{path} is no text in UTF-8, or no YAML") from None


def _lists_of(value: Any, name: str, path: Path, depth: int) -> Iterator[tuple[str, list[str]]]:
    """Lists of a YAML file, named by the keys that lead to them."""
    if depth > _DEPTH:
        raise TemplateError(f"{path} is nested more than {_DEPTH} deep")
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _lists_of(inner, f"{name}/{key}", path, depth + 1)
    elif isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        yield name, [str(one).strip() for one in value if str(one).strip()]
    else:
        raise TemplateError(f"{path}: {name} is no list of texts")
