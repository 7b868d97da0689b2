"""The record of one image: everything needed to know it again, and to make it again.

Its deterministic part is written into the image file. The line in `records/<shard>.jsonl` adds what
is only known afterwards: path, digest, size, timings. So a line lost in a crash can be rebuilt from
the image, all but its timings.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs.manifest.prompt_syntax import READ_BY_A1111, SYNTAX, foreign_syntax
from jobs.pictures.embedded import read_record
from jobs.task import LoraUse, Task, VaeUse, spec_digest

if TYPE_CHECKING:
    from sd_core.model.diffusion import Provenance

RECORD_VERSION = 1

_SEPARATORS = re.compile(r"[/\\]")  # of any system's paths

_PACKAGES = ("sdbatch", "torch", "transformers", "numpy", "pillow")


@dataclass(frozen=True)
class ModelInfo:
    """The model that made an image.

    digest: sha256 of its weights, 64 hex digits. source: where it was loaded from. revision: the
    commit of a `hf:` source. loras: merged into it, as `sd_core.model.diffusion.Provenance` has
    them.
    """

    name: str
    digest: str
    source: str
    revision: str | None = None
    loras: tuple[tuple[str, str, float, float], ...] = ()

    @classmethod
    def of(cls, name: str, source: str, provenance: Provenance | None) -> ModelInfo:
        """A model that was loaded from there."""
        if provenance is None:
            return cls(name, "", source)
        return cls(name, provenance.digest, source, provenance.revision, provenance.loras)

    def to_json(self) -> dict[str, Any]:
        """The model as records and `done.json` name it: without this machine's folders."""
        values: dict[str, Any] = {"name": self.name, "digest": self.digest}
        values["source"] = _public_source(self.source)
        if self.revision is not None:
            values["revision"] = self.revision
        if self.loras:
            keys = ("name", "sha256", "weight", "text_weight")
            values["loras"] = [dict(zip(keys, one, strict=True)) for one in self.loras]
        return values


@dataclass(frozen=True)
class RenderInfo:
    """How one image was rendered.

    device: of `sd_core.device.device_kind`, and kernels of our own on it.
    execution: how the model was run, as `sd_core.execution` names it.
    evaluations: of the UNet.
    batch_rows: rows of the batches it ran in, which its bytes depend on; None if there was not one
        fixed count.
    render_s: from admission to the last pixel.
    tokens_cut: field of a prompt -> tokens of it that the model did not read; of those only that
        were cut.
    """

    device: str
    dtype: str
    execution: str
    evaluations: int
    batch_rows: int | None
    render_s: float
    tokens_cut: Mapping[str, int] = field(default_factory=dict)


def prompts_of(task: Task) -> dict[str, str]:
    """Field -> text, of the prompts that the model reads for an image."""
    if task.sampling.guidance == 1.0:  # the model is not asked without the prompt
        return {"prompt": task.prompt}
    return {"prompt": task.prompt, "negative": task.negative}


def image_record(task: Task, model: ModelInfo, render: RenderInfo) -> dict[str, Any]:
    """The deterministic part: the same task on the same set-up gives the same record."""
    return {
        "version": RECORD_VERSION,
        "index": task.index,
        "name": task.name,
        "spec": spec_digest(task, model.digest),
        **task.canonical(),
        **({} if task.template is None else {"template": task.template}),
        **({"meta": dict(task.meta)} if task.meta else {}),
        **names_of_files(task),
        "model": model.to_json(),
        "evaluations": render.evaluations,
        **_reproducible(render.batch_rows),
        "device": render.device,
        "dtype": render.dtype,
        "execution": render.execution,
        **_not_as_written(task, render.tokens_cut),
        "software": dict(software_versions()),
    }


def names_of_inputs(task: Task, input_names: Mapping[str, str]) -> dict[str, str]:
    """Fields of a line for what an image's inputs were called. They are in no image: its bytes do
    not depend on where inputs came from. input_names: by their names as inputs.
    """
    given = {"init_image_name": task.init_image or "", "mask_name": task.mask or ""}
    return {key: input_names[name] for key, name in given.items() if name in input_names}


def names_of_files(task: Task) -> dict[str, Any]:
    """LoRA and VAE of an image as its job calls them, in a record's fields."""
    return {
        **({"loras": [_named(use) for use in task.loras]} if task.loras else {}),
        **({} if task.vae is None else {"vae": _named(task.vae)}),
    }


def _named(use: LoraUse | VaeUse) -> dict[str, Any]:
    return {"name": use.name, **use.canonical()}


def _not_as_written(task: Task, tokens_cut: Mapping[str, int]) -> dict[str, Any]:
    """Fields for prompts that the picture may not show as they were meant; mostly none.

    tokens_cut: as `RenderInfo` has it. syntax_as_text: kinds of
    `jobs.manifest.prompt_syntax.SYNTAX`.
    """
    found = {kind for text in prompts_of(task).values() for kind, _ in foreign_syntax(text)}
    if task.sampling.syntax == "a1111":
        found -= set(READ_BY_A1111)
    as_text = [kind for kind in SYNTAX if kind in found]
    return {
        **({"tokens_cut": dict(tokens_cut)} if tokens_cut else {}),
        **({"syntax_as_text": as_text} if as_text else {}),
    }


def _reproducible(batch_rows: int | None) -> dict[str, Any]:
    """Say if rendering again gives the same bytes, on a worker of the same kind."""
    if batch_rows is None:
        return {"reproducible": "fast"}
    return {"reproducible": "exact", "batch_rows": batch_rows}


def record_line(
    record: Mapping[str, Any],
    path: str,
    data: bytes,
    *,
    timings_s: Mapping[str, float] | None = None,
    finished: str | None = None,
) -> dict[str, Any]:
    """A line of `records/<shard>.jsonl`.

    path: of the image inside the job's folder. data: the image file. timings_s: seconds by stage.
    finished: when, ISO 8601 in UTC.
    """
    line = dict(record)
    line |= {"path": path, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    if timings_s is not None:
        line["timings_s"] = {stage: round(seconds, 6) for stage, seconds in timings_s.items()}
    if finished is not None:
        line["finished"] = finished
    return line


def record_from_image(data: bytes, path: str) -> dict[str, Any]:
    """The line of an image whose own was lost: without timings. Raises `ValueError`, like
    `read_record`.
    """
    return record_line(read_record(data), path, data)


@functools.cache
def software_versions() -> Mapping[str, str]:
    """Package -> version, of those that the pixels and bytes of an image depend on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # run from a source tree, or without the renderer
    return versions


def _public_source(source: str) -> str:
    """`demo`, `hf:owner/name`, or the last part of a path or URL, without a URL's signature."""
    if source.startswith("hf:"):
        return source
    address = source.partition("?")[0] if "://" in source else source
    return _SEPARATORS.split(address.rstrip("/\\"))[-1]
