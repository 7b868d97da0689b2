"""`manifest.resolved.yaml`: the manifest of a job, which needs nothing but the job's folder.

The manifest as it was submitted names pictures and lists of prompts where it was written. This one
has all that they held: pictures are those in `inputs/`, and prompts of files are in it or, where
they are many, in `inputs/<sha256>.jsonl`. It gives the same plan, so the same images under the same
names, in a job of the same id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import islice
from typing import Any

import yaml

from jobs.folder.layout import JobFolder
from jobs.image_settings import SETTINGS
from jobs.limits import MAX_LINE_BYTES
from jobs.manifest.entries import Entry
from jobs.manifest.labels import unfilled
from jobs.manifest.loras import written
from jobs.manifest.manifest import Manifest
from jobs.manifest.named_files import manifest_names
from jobs.manifest.schema import EXAMPLE
from jobs.manifest.vaes import vae_name
from jobs.task import Reproducible
from sd_core.spec import ADDED_SETTINGS, Sampling

INLINE_ENTRIES = 200
INLINE_BYTES = 64 * 2**10
"""Up to so many prompts, and bytes of them, are in the manifest itself, for people to read."""

PART_BYTES = 2**23
"""About as many bytes of prompts are in one file; also what memory it takes to write it."""

_INPUTS = "inputs/"

_HEADER = """\
# Written by sdbatch: what manifest.yaml meant, with nothing but this folder. The same images.
"""

_LEFT_OUT = (
    "strength",
    "eta",
    "karras",
    *ADDED_SETTINGS,
)  # unless they are other than what is built in

_WITH_PROMPTS = {"seeds", "model"}  # keys of a matrix that are with the prompts here

_dump_line = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def write_resolved(folder: JobFolder, manifest: Manifest, reproducible: Reproducible) -> None:
    """Replaces an earlier one. Raises `StoreError`."""
    defaults = _defaults(manifest)
    head: dict[str, Any] = {"version": EXAMPLE["version"], "name": manifest.name}
    model = manifest.models[0].name
    head |= {"model": model, "reproducible": reproducible, "defaults": defaults}
    if manifest.loras:
        head["loras"] = manifest_names(manifest.loras, _INPUTS)
    if manifest.embeddings:
        head["embeddings"] = manifest_names(manifest.embeddings, _INPUTS)
    if manifest.vaes:
        head["vaes"] = manifest_names(manifest.vaes, _INPUTS)
    if manifest.matrix.keys() - _WITH_PROMPTS:
        matrix = {k: values for k, values in manifest.matrix.items() if k not in _WITH_PROMPTS}
        head["matrix"] = {key: _axis(values) for key, values in matrix.items()}
    output: dict[str, Any] = {"format": manifest.output.format, "name": manifest.output.name}
    if manifest.output.format != "png":
        output["quality"] = manifest.output.quality
    if not manifest.output.thumbnails:
        output["thumbnails"] = False
    if manifest.output.dataset is not None:
        output["dataset"] = manifest.output.dataset
    prompts = list(_prompts(folder, manifest, defaults))
    text = _dump_yaml({**head, "output": output, "prompts": prompts})
    data = (_HEADER + text).encode()
    folder.put(folder.keys.resolved, data, overwrite=True)


def _axis(values: Any) -> Any:
    """The values of a key of the matrix, as YAML has them."""
    return dict(values) if isinstance(values, Mapping) else list(values)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Manifests have none; equal lists of seeds would become some."""
        return True


def _dump_yaml(document: Mapping[str, Any]) -> str:
    return yaml.dump(
        document,
        Dumper=_Dumper,
        allow_unicode=True,
        default_flow_style=None,
        sort_keys=False,
        width=100,
    )


def _defaults(manifest: Manifest) -> dict[str, Any]:
    """The settings of the first prompt, which mostly are those of all."""
    first = next(iter(manifest.entries))
    settings = {"negative": first.negative, **dict(zip(SETTINGS, first.settings, strict=True))}
    return {
        name: value
        for name, value in settings.items()
        if name not in _LEFT_OUT or value != getattr(Sampling, name)
    }


def _prompts(folder: JobFolder, manifest: Manifest, defaults: Mapping[str, Any]) -> Iterator[Any]:
    """The items of `prompts`; writes the files that they name."""
    first = list(islice(manifest.entries, INLINE_ENTRIES + 1))
    rows = [_row(entry, manifest, defaults, _INPUTS) for entry in first]
    size_bytes = sum(len(_dump_line(row)) for row in rows)
    if len(first) <= INLINE_ENTRIES and size_bytes <= INLINE_BYTES:
        yield from (row["prompt"] if row.keys() == {"prompt"} else row for row in rows)
        return
    part: list[bytes] = []
    part_bytes = 0
    for entry in manifest.entries:
        # Beside the pictures: paths in a file of prompts are relative to it.
        line = _dump_line(_row(entry, manifest, defaults, "")).encode() + b"\n"
        long = len(line) > MAX_LINE_BYTES
        if part and (long or part_bytes + len(line) > PART_BYTES):
            yield _file(folder, part)
            part, part_bytes = [], 0
        if long:
            yield _row(entry, manifest, defaults, _INPUTS)
        else:
            part.append(line)
            part_bytes += len(line)
    if part:
        yield _file(folder, part)


def _file(folder: JobFolder, lines: Iterable[bytes]) -> dict[str, str]:
    data = b"".join(lines)
    key = folder.keys.input(f"{sha256(data).hexdigest()}.jsonl")
    if folder.head(key) is None:
        folder.put(key, data)
    return {"file": folder.keys.path(key)}


def _row(
    entry: Entry, manifest: Manifest, defaults: Mapping[str, Any], folder: str
) -> dict[str, Any]:
    """A prompt with all that differs from the defaults. folder: of its pictures."""
    row: dict[str, Any] = {"prompt": unfilled(entry.prompt, entry.meta)}
    if entry.meta:
        row["meta"] = dict(entry.meta)
    if isinstance(entry.seeds, tuple):
        row["seeds"] = dict(zip(("start", "count"), entry.seeds, strict=True))
    elif entry.seeds != [Sampling.seed]:
        row["seeds"] = entry.seeds[0] if len(entry.seeds) == 1 else entry.seeds
    settings = {"negative": entry.negative, **dict(zip(SETTINGS, entry.settings, strict=True))}
    template = entry.template
    for name, value in settings.items():
        as_default = value == defaults.get(name, getattr(Sampling, name, None))
        if as_default and not (name == "negative" and entry.meta and "${" in value):
            continue
        if name == "strength" and entry.init_image is None:
            # A prompt cannot set it; from elsewhere it does nothing but for the name.
            template = template.replace("{strength}", f"{value:g}")
        else:
            row[name] = unfilled(value, entry.meta) if name == "negative" else value
    if entry.loras:
        row["loras"] = [written(use) for use in entry.loras]
    if entry.embeddings:
        row["embeddings"] = [name for name, _, _ in entry.embeddings]
    if entry.vae:
        row["vae"] = vae_name(entry.vae)
    if entry.model != manifest.models[0].name:
        row["model"] = entry.model
    for name in ("init_image", "mask"):
        picture = getattr(entry, name)
        if picture is not None:
            row[name] = folder + picture
    if template != manifest.output.name:
        row["name"] = template
    return row
