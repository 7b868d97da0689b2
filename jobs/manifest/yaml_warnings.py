"""Warnings of texts that YAML may have taken otherwise than they were meant."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.errors import Problem
from jobs.formatting import quote
from jobs.manifest.problems import Path, join_path
from jobs.manifest.warnings import WarningList

_FREE_TEXTS = ("prompts", "prompt", "negative", "file", "init_image", "mask", "store")
"""Keys of texts that people write without a thought of YAML."""

_DOUBTS = {
    "comment": "is a comment in YAML and no part of the text; a text with a # after a space needs "
    "quotes",
    "joined": "is one text, of several lines; items of a list begin one below the other",
}
"""Kind, as `jobs.manifest.yaml_file` tells of it -> what there is to say."""


@dataclass(frozen=True)
class YamlDoubts:
    """Listener for the doubts of `jobs.manifest.yaml_file.YamlFile`. file: as messages show it."""

    file: str
    warnings: WarningList

    def __call__(self, kind: str, path: Path, line: int, column: int, text: str) -> None:
        key = next(part for part in reversed(path) if isinstance(part, str))
        if key not in _FREE_TEXTS or (key == "prompts" and len(path) > 2):
            return
        message = f"{quote(text.rstrip())} {_DOUBTS[kind]}"
        self.warnings.add(
            kind, lambda: Problem(self.file, line, column, join_path("", path), message)
        )
