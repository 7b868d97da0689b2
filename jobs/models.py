"""The model list: names of models and of LoRA, and where each is."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Required

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic takes that of typing from 3.12 on

from jobs.errors import InputError
from jobs.formatting import found, quote, reason
from jobs.manifest.problems import ProblemList
from jobs.manifest.sources import read_file
from jobs.manifest.yaml_file import NodePlace, YamlFile, plain
from jobs.task import WEIGHT_SUFFIXES
from sd_core.spec import MOST_LORA_WEIGHT, MOST_LORAS


@dataclass(frozen=True)
class MergedLora:
    """A file that is merged into a model while it is loaded, and how much of it."""

    source: str
    weight: float = 1.0
    text_weight: float = 1.0


@dataclass(frozen=True)
class ModelSource:
    """Where a model or a LoRA is, and its digest if it is pinned.

    source: of a model, as `sd_core.load_model` takes it; of a LoRA, a path, s3://bucket/key or
    hf:owner/name/file. digest: 64 hex digits, of a model's weights, of a LoRA's file.
    loras: merged into a model, in this order. prediction, zero_snr: of a model, as
    `sd_core.load_model` takes them.
    """

    source: str
    digest: str | None = None
    loras: tuple[MergedLora, ...] = ()
    prediction: str = "auto"
    zero_snr: bool | None = None


@dataclass(frozen=True)
class ModelList:
    """Everything that has a name. loras, embeddings, vaes: also those of a folder, by file
    names.
    """

    models: Mapping[str, ModelSource] = field(default_factory=dict)
    loras: Mapping[str, ModelSource] = field(default_factory=dict)
    embeddings: Mapping[str, ModelSource] = field(default_factory=dict)
    vaes: Mapping[str, ModelSource] = field(default_factory=dict)


SECTIONS = ("loras", "embeddings", "vaes")
"""Sections of a model list that name files that models are used with."""

MOST_IN_FOLDER = 10_000
"""Files of a folder of LoRA or embeddings; a larger one is a mistake, such as a home folder."""

_MAX_LIST_BYTES = 2**20

_VAE_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.safetensors",
)

_Text = Annotated[str, Field(min_length=1)]


@with_config(ConfigDict(extra="forbid", strict=True))
class _Pinned(TypedDict, total=False):
    source: Required[_Text]
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


_Weight = Annotated[float, Field(ge=-MOST_LORA_WEIGHT, le=MOST_LORA_WEIGHT, allow_inf_nan=False)]


@with_config(ConfigDict(extra="forbid", strict=True))
class _Merged(TypedDict, total=False):
    source: Required[_Text]
    weight: _Weight
    text_weight: _Weight


class _Model(_Pinned, total=False):
    prediction: Literal["auto", "epsilon", "v"]
    zero_snr: bool
    loras: Annotated[list[_Text | _Merged], Field(max_length=MOST_LORAS)]


_FILE: TypeAdapter[Any] = TypeAdapter(_Text | _Pinned)
_MODEL: TypeAdapter[Any] = TypeAdapter(_Text | _Model)

_A_MODEL = "demo, a checkpoint, a diffusers folder, hf:owner/name, s3://bucket/key"
_MERGED = "a list of files, or of {source: …, weight: 1, text_weight: 1}"
_A_FILE = "a file, hf:owner/name/file, s3://bucket/key"


def load_models(given: Path | str) -> ModelList:
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
    place, listed = NodePlace(name, "", top), plain(top)
    sections = {
        section: _section(listed.pop(section, {}), folder, place, section, problems)
        for section in SECTIONS
    }
    sections["vaes"] = {name: _weights_of(source) for name, source in sections["vaes"].items()}
    models = _sources(listed, folder, _A_MODEL, place, (), problems, sections["loras"])
    problems.raise_if_any()
    return ModelList(models, **sections)


def _section(
    named: Any, folder: Path, place: NodePlace, section: str, problems: ProblemList
) -> dict[str, ModelSource]:
    """The names of a section, or those of the files of the folder that it is."""
    if isinstance(named, dict):
        return _sources(named, folder, _A_FILE, place, (section,), problems)
    if isinstance(named, str) and named:
        try:
            return _in_folder(Path(_located(named, folder)).expanduser())
        except (OSError, RuntimeError, ValueError) as error:
            why = reason(error) if isinstance(error, OSError) else str(error)
            problems.at(place, (section,), f"{quote(named)} cannot be read: {why}")
    else:
        message = f"found {found(named)}, expected a mapping of names to files, or a folder"
        problems.at(place, (section,), message)
    return {}


def _sources(
    listed: Mapping[str, Any],
    folder: Path,
    expected: str,
    place: NodePlace,
    prefix: tuple[str, ...],
    problems: ProblemList,
    loras: Mapping[str, ModelSource] | None = None,
) -> dict[str, ModelSource]:
    """Names with what they stand for. expected: the sources there are, in words. loras: by their
    names, where models are listed, into which some may be merged.
    """
    sources = {}
    for name, given in listed.items():
        try:
            value = (_FILE if loras is None else _MODEL).validate_python(given)
        except ValidationError as error:
            merged = (
                ""
                if loras is None
                else ", loras: [files to merge], prediction: auto, epsilon or v, "
                "zero_snr: true or false"
            )
            message = (
                f"found {found(given)}, expected a source ({expected}) or "
                f"{{source: …, digest: 64 hex digits{merged}}}"
            )
            wrong = any("loras" in flaw["loc"] for flaw in error.errors())
            if loras is not None and wrong:
                message = f"its loras are {found(given['loras'])}; expected {_MERGED}"
            problems.at(place, (*prefix, name), message)
            continue
        pinned: dict[str, Any] = {"source": value} if isinstance(value, str) else value
        sources[name] = ModelSource(
            _located(pinned["source"], folder),
            pinned.get("digest"),
            tuple(_merged(one, folder, loras or {}) for one in pinned.get("loras", ())),
            pinned.get("prediction", "auto"),
            pinned.get("zero_snr"),
        )
    return sources


def _merged(given: Any, folder: Path, named: Mapping[str, ModelSource]) -> MergedLora:
    """A file to merge, or one that the list's section of LoRA names."""
    values = {"source": given} if isinstance(given, str) else given
    source, weight = values["source"], float(values.get("weight", 1.0))
    place = named[source].source if source in named else _located(source, folder)
    return MergedLora(place, weight, float(values.get("text_weight", weight)))


def _weights_of(vae: ModelSource) -> ModelSource:
    """The file of a VAE in the diffusers format, whose folder was named."""
    folder = Path(vae.source)
    with contextlib.suppress(RuntimeError):  # nobody knows whose home: it is not there
        folder = folder.expanduser()
    file = next((folder / name for name in _VAE_FILES if (folder / name).is_file()), None)
    return vae if file is None else replace(vae, source=str(file))


def _in_folder(folder: Path) -> dict[str, ModelSource]:
    """Files of weights in a folder and below it, by their names without endings; by their paths
    where several have one name. Raises `OSError` and `ValueError`.
    """
    if not folder.is_dir():
        raise ValueError("it is no folder")
    paths: list[Path] = []
    seen: set[str] = set()  # a link may lead back
    for root, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        paths += [
            Path(root, name)
            for name in sorted(names)
            if name.rpartition(".")[2].lower() in WEIGHT_SUFFIXES
        ]
        if len(paths) > MOST_IN_FOLDER:
            raise ValueError(f"it holds more than {MOST_IN_FOLDER:,} files")
    count = Counter(path.stem for path in paths)
    return {
        path.stem
        if count[path.stem] == 1
        else path.relative_to(folder).with_suffix("").as_posix(): ModelSource(str(path))
        for path in paths
    }


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
