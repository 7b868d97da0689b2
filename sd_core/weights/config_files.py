"""Reads the small JSON and YAML files that come with weights, bounded in time and memory.

A file within the limits below takes at most about a second and 20 MB.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sd_core.weights.errors import CheckpointError, named
from sd_core.weights.json_text import parse_json

MAX_CONFIG_BYTES = 1_000_000
MAX_CONFIG_VALUES = 50_000  # an index of shards, the largest of them, names 700 weights
MAX_YAML_BYTES = 64 * 2**10  # v1's has 2 kB; the parser takes seconds for a megabyte

Config = Mapping[str, Any]


def read_bounded(path: Path, limit: int) -> bytes:
    """A small file's bytes. Raises `CheckpointError`, for one of more than `limit` bytes, too."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise CheckpointError(f"{path}: not a regular file; expected a model's configuration")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; expected a model configuration") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > limit:
        raise CheckpointError(f"{path}: larger than {limit} bytes; expected a configuration")
    return content


def read_json(
    path: Path, *, max_bytes: int = MAX_CONFIG_BYTES, max_values: int = MAX_CONFIG_VALUES
) -> Config:
    """A JSON object. Raises `CheckpointError`."""
    content = read_bounded(path, max_bytes)
    try:
        values = parse_json(content, max_values=max_values)
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {named(str(error))}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object, it is a {type(values).__name__}")
    return values


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases: with them a small file holds values of any size."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "an alias, which is not read", mark)
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> Any:
    """A YAML document of plain values. Raises `CheckpointError`."""
    content = read_bounded(path, MAX_YAML_BYTES)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: cannot be read as text: {error}") from None
    try:
        return yaml.load(text, _PlainLoader)
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path}: not valid YAML: {error}") from None
    except (ValueError, TypeError, RecursionError) as error:  # of a number's or date's text
        raise CheckpointError(
            f"{path}: not a v1 model's configuration: {named(str(error))}"
        ) from None
