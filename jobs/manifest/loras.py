"""LoRA that a manifest uses: known in its own section `loras`, in the model list, or by a path."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from jobs.formatting import quote, suggest
from jobs.limits import MAX_LORA_BYTES, MAX_LORA_NAME_CHARS
from jobs.manifest.input_images import Inputs
from jobs.manifest.lora_tags import LoraTag
from jobs.manifest.scalars import unreadable
from jobs.manifest.sources import S3, FileSource, Source
from jobs.task import LORA_SUFFIXES
from sd_core.weights.errors import CheckpointError
from sd_core.weights.lora.header import check_lora

_PATH = re.compile(rf".*\.({'|'.join(LORA_SUFFIXES)})", re.IGNORECASE | re.DOTALL)
_NOT_IN_NAMES = re.compile(r"[:<>]|^\s|\s$")  # a tag in a prompt could not say it


class Listed(Protocol):
    """An entry of the model list: a path, s3:// or hf: address, and the file's sha256 if known."""

    @property
    def source(self) -> str: ...
    @property
    def digest(self) -> str | None: ...


class LoraRules(NamedTuple):
    """Answers of the operator, asked for when the first LoRA is met.

    listed: those of the model list. limit_bytes: of a file.
    """

    listed: Callable[[], Mapping[str, Listed]] = dict
    limit_bytes: Callable[[], int] = lambda: MAX_LORA_BYTES


NO_LORAS = LoraRules()


class KnownLora(NamedTuple):
    """A LoRA that was found and looked at; the fields are those of `jobs.task.LoraUse`.

    file: its name in the job's `inputs/`; None for one that workers have in their model list.
    """

    name: str
    sha256: str
    file: str | None


Use = tuple[str, str, float, float, str | None]
"""The values of a `jobs.task.LoraUse`, as entries keep them."""


def use_of(tag: LoraTag, known: KnownLora) -> Use:
    """A LoRA as a tag in a prompt asks for it."""
    return known.name, known.sha256, tag.weight, tag.text_weight, known.file


def written(use: Use) -> str | dict[str, Any]:
    """A LoRA as a manifest names it that has `manifest_names`."""
    name, _, weight, text_weight, _ = use
    if weight == text_weight == 1.0:
        return name
    values = {"name": name, "weight": weight}
    return values if weight == text_weight else {**values, "text_weight": text_weight}


def manifest_names(known: Mapping[str, KnownLora], folder: str) -> dict[str, Any]:
    """The section `loras` of a manifest that uses these. folder: of their files."""
    return {
        name: {"sha256": lora.sha256} if lora.file is None else folder + lora.file
        for name, lora in known.items()
    }


class Loras:
    """The LoRA of one manifest. Each file is read once, however many prompts use it.

    known: every LoRA that was found, by its name.
    """

    def __init__(self, inputs: Inputs, rules: LoraRules) -> None:
        self.known: dict[str, KnownLora] = {}
        self._inputs = inputs
        self._rules = rules
        self._own: dict[str, tuple[KnownLora, Source | None]] = {}
        self._wrong: set[str] = set()  # names of the manifest's own that cannot be used
        self._paths: dict[Path | str, tuple[KnownLora, Source] | str] = {}

    @cached_property
    def _listed(self) -> Mapping[str, Listed]:
        return self._rules.listed()

    @cached_property
    def _limit_bytes(self) -> int:
        return self._rules.limit_bytes()

    def declare(self, name: str, given: str | Mapping[str, str], folder: Path) -> None:
        """A line of the manifest's own section: a path, or {path, sha256}. Raises `ValueError`."""
        self._wrong.add(name)
        _check_name(name)
        values = {"path": given} if isinstance(given, str) else given
        path, sha256 = values.get("path"), values.get("sha256")
        if path is None:
            if sha256 is None:
                raise ValueError("expected a path, a sha256, or both")
            self._own[name] = KnownLora(name, sha256, None), None
        else:
            known, source = self._at(path, folder)
            if sha256 not in (None, known.sha256):
                raise ValueError(f"{quote(path)} has sha256 {known.sha256}, not {sha256}")
            self._own[name] = known._replace(name=name), source
        self._wrong.discard(name)

    def use(self, given: str | Mapping[str, Any], folder: Path) -> Use:
        """An item of a list of LoRA: a name or path, or {name, weight, text_weight}.

        folder: of paths. Raises `ValueError`.
        """
        values = {"name": given} if isinstance(given, str) else given
        weight = float(values.get("weight", 1.0))
        text_weight = float(values.get("text_weight", weight))
        name, sha256, file = self.find(values["name"], folder)
        return name, sha256, weight, text_weight, file

    def find(self, text: str, folder: Path | None = None) -> KnownLora:
        """The LoRA of a name; with a folder also of a path from there. Raises `ValueError`."""
        if text in self._own:
            return self._kept(*self._own[text])
        if text in self._wrong:
            raise ValueError(f"{quote(text)} cannot be used, see loras at the top")
        if folder is not None and _PATH.fullmatch(text):
            return self._kept(*self._at(text, folder))
        listed = self._listed
        if text in listed:
            return self._kept(self._of_list(text, listed[text]), None)
        names = [*self._own, *listed]
        close = suggest(text, names)
        if close is not None:
            raise ValueError(f"LoRA {quote(text)} is not known; did you mean '{close}'?")
        some = f"known are {', '.join(names[:10])}" if names else "none has a name here"
        raise ValueError(
            f"LoRA {quote(text)} is not known; {some} (names are under loras in the manifest or in "
            f"the list that SDBATCH_MODELS names; a path ends in .{LORA_SUFFIXES[0]})"
        )

    def _kept(self, known: KnownLora, source: Source | None) -> KnownLora:
        other = self.known.setdefault(known.name, known)
        if other.sha256 != known.sha256:
            raise ValueError(
                f"two different files are called {quote(known.name)}; name them under loras"
            )
        if known.file is not None and source is not None:
            self._inputs.sources.setdefault(known.file, source)
        return other

    def _at(self, text: str, folder: Path) -> tuple[KnownLora, Source]:
        place = text if text.startswith(S3) else folder / text
        if place not in self._paths:
            try:
                self._paths[place] = self._look(text, folder)
            except ValueError as error:
                self._paths[place] = str(error)
        found = self._paths[place]
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def _look(self, text: str, folder: Path) -> tuple[KnownLora, Source]:
        if not _PATH.fullmatch(text):
            raise ValueError(f"{quote(text)} ends in none of {', '.join(LORA_SUFFIXES)}")
        source = self._inputs.source(text, folder)
        sha256 = self._sha256(source, text)
        path = PurePosixPath(text)
        name = re.sub("[:<>]", "-", path.stem)[:MAX_LORA_NAME_CHARS].strip() or "lora"
        return KnownLora(name, sha256, f"{sha256}{path.suffix.lower()}"), source

    def _of_list(self, name: str, listed: Listed) -> KnownLora:
        _check_name(name)
        if listed.digest is not None:
            return KnownLora(name, listed.digest, None)
        if listed.source.startswith((S3, "hf:")):
            raise ValueError(
                f"LoRA {quote(name)} is at {listed.source}: the model list has to say its sha256, "
                "as {source: …, digest: …}"
            )
        try:
            path = Path(listed.source).expanduser()
        except RuntimeError:  # nobody knows whose home
            path = Path(listed.source)
        return KnownLora(name, self._sha256(FileSource(path, listed.source), listed.source), None)

    def _sha256(self, source: Source, text: str) -> str:
        """The digest of a file that is a LoRA as far as can be seen. Raises `ValueError`."""
        data = source.read(self._limit_bytes)
        try:
            check_lora(data, quote(text))
        except CheckpointError as error:
            raise ValueError(str(error)) from None
        return hashlib.sha256(data).hexdigest()


def _check_name(name: str) -> None:
    flaw = _NOT_IN_NAMES.search(name)
    if not 1 <= len(name) <= MAX_LORA_NAME_CHARS or flaw or unreadable(name):
        raise ValueError(
            f"{quote(name)} is no name for a LoRA; expected 1 to {MAX_LORA_NAME_CHARS} characters "
            "without : < >"
        )
