"""The model list: names of models, and where each is."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Required

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic takes that of typing from 3.12 on

from jobs.errors import InputError
from jobs.formatting import found, reason
from jobs.manifest.problems import ProblemList
from jobs.manifest.sources import read_file
from jobs.manifest.yaml_file import NodePlace, YamlFile, plain


@dataclass(frozen=True)
class ModelSource:
    """Where a model is, as `sd_core.load_model` takes it, and its digest if it is pinned.

    digest: sha256 of the weights, 64 hex digits.
    """

    source: str
    digest: str | None = None


_MAX_LIST_BYTES = 2**20


@with_config(ConfigDict(extra="forbid", strict=True))
class _Pinned(TypedDict, total=False):
    source: Required[Annotated[str, Field(min_length=1)]]
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


_SOURCE: TypeAdapter[Any] = TypeAdapter(Annotated[str, Field(min_length=1)] | _Pinned)


def load_models(given: Path | str) -> dict[str, ModelSource]:
    """A model list, YAML or JSON. Paths in it are relative to it.

    given: its path; or, as a text that begins with {, the list itself, whose paths are relative to
    the working directory.
    Raises `InputError`, for mistakes in the list as `ManifestError` with their places.
    """
    if isinstance(given, str) and given.lstrip().startswith("{"):
        name, folder, source = "SDBATCH_MODELS", Path(), given.encode()
    else:
        path = Path(given)
        with contextlib.suppress(RuntimeError):  # nobody knows whose home: it is not there
            path = path.expanduser()
        name, folder, source = str(path), path.parent, _read_list(path)
    problems = ProblemList()
    top, _ = YamlFile(source, name, problems).mapping()
    models = {}
    for model, listed in plain(top).items():
        try:
            value = _SOURCE.validate_python(listed)
        except ValidationError:
            message = (
                f"found {found(listed)}, expected a source (demo, a checkpoint, a diffusers "
                "folder, hf:owner/name, s3://bucket/key) or {source: …, digest: 64 hex digits}"
            )
            problems.at(NodePlace(name, "", top), (model,), message)
            continue
        pinned = {"source": value} if isinstance(value, str) else value
        models[model] = ModelSource(_located(pinned["source"], folder), pinned.get("digest"))
    problems.raise_if_any()
    return models


def _read_list(path: Path) -> bytes:
    try:
        return read_file(path, _MAX_LIST_BYTES)
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"SDBATCH_MODELS: {path} cannot be read: {why}") from None


def _located(source: str, folder: Path) -> str:
    """A path relative to the list, or a source that is no path."""
    below_home = source.startswith("~") and "/" in source  # what reads it knows whose
    if source == "demo" or source.startswith(("hf:", "s3://")) or below_home:
        return source
    return str(folder / source)
