"""Reads manifests for commands and scripts: files, texts or mappings, with the settings' names."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.errors import InputError
from jobs.settings import Settings
from jobs.terminal.console import Terminal

if TYPE_CHECKING:
    from jobs.manifest.manifest import Manifest

_NOT_IN_YAML = re.compile(r"[\x7f-\x9f\u2028\u2029\ufeff]")

UNNAMED = Path("manifest")
"""Names a manifest that is in no file; what it names is looked for in the current folder."""


def read_manifest(
    terminal: Terminal,
    path: Path,
    *,
    source: bytes | None = None,
    allow_outside: bool,
    model: str | None = None,
    all_listed: bool = False,
) -> Manifest:
    """`load_manifest` with progress; says its warnings.

    source: see `load_manifest`. all_listed: models must be in the model list here; else they may be
    in that of workers alone. The settings are read where models besides demo, LoRA, embeddings or
    VAEs are named. Raises `ManifestError` and `InputError`.
    """
    # The manifest's side (pydantic, libyaml) takes long to import; most commands do without it.
    from jobs.limits import MAX_EMBEDDING_BYTES
    from jobs.manifest.load import load_manifest
    from jobs.manifest.named_files import FileRules
    from jobs.manifest.warnings import WarningList

    settings = functools.cache(lambda: Settings.from_env(os.environ))
    found = WarningList()
    loras = FileRules(lambda: settings().loras, lambda: settings().lora_bytes)
    embeddings = FileRules(lambda: settings().embeddings, lambda: MAX_EMBEDDING_BYTES)
    vaes = FileRules(lambda: settings().vaes, lambda: settings().lora_bytes)
    try:
        with terminal.counting(f"reading {path.name}") as tick:
            return load_manifest(
                path,
                source=source,
                allow_outside=allow_outside,
                model=model,
                tick=tick,
                warnings=found,
                loras=loras,
                embeddings=embeddings,
                vaes=vaes,
                models=lambda: settings().models if all_listed else None,
            )
    finally:
        terminal.warn(found)


def given(manifest: Mapping[str, Any] | str | os.PathLike[str]) -> tuple[Path, bytes | None]:
    """Path and source of a manifest as a script has it: a mapping, a text of several lines in YAML,
    or a path. The source is None for a path.

    Raises `InputError` for a mapping with values that no manifest has.
    """
    if isinstance(manifest, Mapping):
        try:
            text = json.dumps(dict(manifest), indent=1, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"the manifest cannot be written as JSON: {error}") from None
        # JSON is YAML but for a few characters, which YAML reads as breaks or not at all.
        text = _NOT_IN_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
        return UNNAMED, text.encode(errors="surrogatepass")
    if isinstance(manifest, str) and "\n" in manifest:
        return UNNAMED, manifest.encode(errors="surrogatepass")
    return Path(manifest), None
