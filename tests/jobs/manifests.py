"""Writing manifests, and reading what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from jobs.errors import ManifestError, Problem
from jobs.manifest.load import load_manifest
from jobs.manifest.manifest import Manifest
from jobs.task import Task

HEAD = "version: 1\n"


def write(folder: Path, text: str | bytes, name: str = "job.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load(folder: Path, body: str, *, allow_outside: bool = False) -> Manifest:
    """A manifest of version 1 with this body."""
    return load_manifest(write(folder, HEAD + body), allow_outside=allow_outside)


def tasks(folder: Path, body: str) -> list[Task]:
    return list(load(folder, body).tasks())


def problems(folder: Path, text: str | bytes) -> list[Problem]:
    """What is wrong with a whole file, version included."""
    with pytest.raises(ManifestError) as caught:
        load_manifest(write(folder, text))
    return caught.value.problems


def messages(folder: Path, body: str) -> list[str]:
    """`line:column: path: message` of each problem; the body starts in line 2."""
    found = problems(folder, HEAD + body)
    return [str(problem).removeprefix(f"{folder / 'job.yaml'}:") for problem in found]


def picture(path: Path, size: tuple[int, int] = (64, 64), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 30)).save(path, **options)
    return path
