"""Files that a manifest names by a word: in a section of its own, in the model list, or by a path.
Three kinds are known: LoRA, embeddings and VAEs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from jobs.formatting import quote, suggest
from jobs.limits import MAX_FILE_NAME_CHARS, MAX_LORA_BYTES
from jobs.manifest.input_images import Inputs
from jobs.manifest.scalars import unreadable
from jobs.manifest.sources import S3, FileSource, Source
from jobs.task import WEIGHT_SUFFIXES
from sd_core.weights.errors import CheckpointError

_PATH = re.compile(rf".*\.({'|'.join(WEIGHT_SUFFIXES)})", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Kind:
    """Properties that all files of a kind share.

    word: for people. section: of manifests and of the model list. unnamed: characters that no name
    has. check: raises `CheckpointError` for the bytes of a file that is none; it is given the
    file's name, too.
    """

    word: str
    section: str
    unnamed: str
    check: Callable[[bytes, str], None]


class Listed(Protocol):
    """An entry of the model list: a path, s3:// or hf: address, and the file's sha256 if known."""

    @property
    def source(self) -> str: ...
    @property
    def digest(self) -> str | None: ...


class FileRules(NamedTuple):
    """Answers of the operator, asked for when the first file of a kind is met.

    listed: those of the model list. limit_bytes: of a file.
    """

    listed: Callable[[], Mapping[str, Listed]] = dict
    limit_bytes: Callable[[], int] = lambda: MAX_LORA_BYTES


NO_FILES = FileRules()


class KnownFile(NamedTuple):
    """A file that was found and looked at.

    sha256: of its bytes, 64 hex digits. file: its name in the job's `inputs/`; None for one that
    workers have in their model list.
    """

    name: str
    sha256: str
    file: str | None


def manifest_names(known: Mapping[str, KnownFile], folder: str) -> dict[str, Any]:
    """A section of names in a manifest that uses these files. folder: of their files."""
    return {
        name: {"sha256": one.sha256} if one.file is None else folder + one.file
        for name, one in known.items()
    }


class NamedFiles:
    """The files of one kind of one manifest. Each is read once, however many prompts use it.

    known: every file that was found, by its name.
    """

    def __init__(self, kind: Kind, inputs: Inputs, rules: FileRules) -> None:
        self.kind = kind
        self.known: dict[str, KnownFile] = {}
        self._inputs = inputs
        self._rules = rules
        self._own: dict[str, tuple[KnownFile, Source | None]] = {}
        self._wrong: set[str] = set()  # names of the manifest's own that cannot be used
        self._paths: dict[Path | str, tuple[KnownFile, Source] | str] = {}

    @cached_property
    def _listed(self) -> Mapping[str, Listed]:
        return self._rules.listed()

    @cached_property
    def _limit_bytes(self) -> int:
        return self._rules.limit_bytes()

    @property
    def names(self) -> list[str]:
        """All that are known: the manifest's own and those of the model list."""
        return [*self._own, *self._listed]

    def declare(self, name: str, given: str | Mapping[str, str], folder: Path) -> None:
        """A line of the manifest's own section: a path, or {path, sha256}. Raises `ValueError`."""
        self._wrong.add(name)
        self._check_name(name)
        values = {"path": given} if isinstance(given, str) else given
        path, sha256 = values.get("path"), values.get("sha256")
        if path is None:
            if sha256 is None:
                raise ValueError("expected a path, a sha256, or both")
            self._own[name] = KnownFile(name, sha256, None), None
        else:
            known, source = self._at(path, folder)
            if sha256 not in (None, known.sha256):
                raise ValueError(f"{quote(path)} has sha256 {known.sha256}, not {sha256}")
            self._own[name] = known._replace(name=name), source
        self._wrong.discard(name)

    def find(self, text: str, folder: Path | None = None) -> KnownFile:
        """The file of a name; with a folder also of a path from there. Raises `ValueError`."""
        if text in self._own:
            return self._kept(*self._own[text])
        if text in self._wrong:
            raise ValueError(f"{quote(text)} cannot be used, see {self.kind.section} at the top")
        if folder is not None and _PATH.fullmatch(text):
            return self._kept(*self._at(text, folder))
        listed = self._listed
        if text in listed:
            return self._kept(self._of_list(text, listed[text]), None)
        names, unknown = self.names, f"{self.kind.word} {quote(text)} is not known"
        close = suggest(text, names)
        if close is not None:
            raise ValueError(f"{unknown}; did you mean '{close}'?")
        some = f"known are {', '.join(names[:10])}" if names else "none has a name here"
        raise ValueError(
            f"{unknown}; {some} (names are under {self.kind.section} in the manifest or in the "
            f"list that SDBATCH_MODELS names; a path ends in .{WEIGHT_SUFFIXES[0]})"
        )

    def _kept(self, known: KnownFile, source: Source | None) -> KnownFile:
        other = self.known.setdefault(known.name, known)
        if other.sha256 != known.sha256:
            raise ValueError(
                f"two different files are called {quote(known.name)}; name them under "
                f"{self.kind.section}"
            )
        if known.file is not None and source is not None:
            self._inputs.sources.setdefault(known.file, source)
        return other

    def _at(self, text: str, folder: Path) -> tuple[KnownFile, Source]:
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

    def _look(self, text: str, folder: Path) -> tuple[KnownFile, Source]:
        if not _PATH.fullmatch(text):
            raise ValueError(f"{quote(text)} ends in none of {', '.join(WEIGHT_SUFFIXES)}")
        source = self._inputs.source(text, folder)
        sha256 = self._sha256(source, text)
        path = PurePosixPath(text)
        name = self._name_of(path.stem)
        return KnownFile(name, sha256, f"{sha256}{path.suffix.lower()}"), source

    def _of_list(self, name: str, listed: Listed) -> KnownFile:
        self._check_name(name)
        if listed.digest is not None:
            return KnownFile(name, listed.digest, None)
        if listed.source.startswith((S3, "hf:")):
            raise ValueError(
                f"{self.kind.word} {quote(name)} is at {listed.source}: the model list has to say "
                "its sha256, as {source: …, digest: …}"
            )
        try:
            path = Path(listed.source).expanduser()
        except RuntimeError:  # nobody knows whose home
            path = Path(listed.source)
        return KnownFile(name, self._sha256(FileSource(path, listed.source), listed.source), None)

    def _sha256(self, source: Source, text: str) -> str:
        """The digest of a file that is of the kind as far as can be seen. Raises `ValueError`."""
        data = source.read(self._limit_bytes)
        try:
            self.kind.check(data, quote(text))
        except CheckpointError as error:
            raise ValueError(str(error)) from None
        return hashlib.sha256(data).hexdigest()

    def _name_of(self, stem: str) -> str:
        """A name from the name of a file."""
        allowed = "".join("-" if c in self.kind.unnamed else c for c in stem)
        return allowed[:MAX_FILE_NAME_CHARS].strip() or self.kind.word

    def _check_name(self, name: str) -> None:
        flaw = name != name.strip() or unreadable(name) or set(self.kind.unnamed) & set(name)
        if not 1 <= len(name) <= MAX_FILE_NAME_CHARS or flaw:
            without = f" without {' '.join(self.kind.unnamed)}" if self.kind.unnamed else ""
            raise ValueError(
                f"{quote(name)} is no name for a {self.kind.word}; expected 1 to "
                f"{MAX_FILE_NAME_CHARS} characters{without}"
            )
