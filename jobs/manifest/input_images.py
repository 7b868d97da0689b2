"""Files that a manifest names: where they may lie, and what an init image or mask must be."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from jobs.formatting import quote, reason
from jobs.limits import MAX_IMAGE_BYTES
from jobs.manifest.picture_sets import WILDCARD, PictureSet, files_named, stem_of
from jobs.manifest.sources import S3, FileSource, ObjectSource, Source, require_file
from jobs.pictures.rules import PictureError, read_picture
from jobs.storage import open_store

TRIED = (64, 64)
"""Width and height that each picture is brought to once, as a worker will, so that one which cannot
be is refused now."""

_NO_WILDCARDS = "there are no wildcards here: name one file an entry"


@dataclass(frozen=True, slots=True)
class InputImage:
    """An init image or mask that was read and found good.

    name: `<sha256 of the file's bytes>.<png|jpg|webp>`, what it is called in the job's folder.
    size: (width, height) in pixels, of the picture held upright.
    stem: what the manifest calls its file, without folder and ending.
    """

    name: str
    size: tuple[int, int]
    stem: str


class Inputs:
    """The files of one manifest. An image is read once, however many prompts name it.

    sources: name in the job's folder -> where its bytes are. names: the same -> what the file of an
    image was called, the first where several are the same.
    """

    def __init__(self, root: Path, *, allow_outside: bool) -> None:
        """root: the folder that paths must stay in, unless `allow_outside`."""
        self.sources: dict[str, Source] = {}
        self.names: dict[str, str] = {}
        self._root = root.resolve()
        self._allow_outside = allow_outside
        self._bucket = cache(open_store)  # making a client takes longer than a small picture does
        self._seen: dict[Path | str, InputImage | str] = {}

    def locate(self, text: str, folder: Path) -> Path:
        """The existing regular file that `text` names from `folder`. Raises `ValueError`."""
        if "://" in text:
            raise ValueError(f"{quote(text)} is an address; lists of prompts are local files")
        path = folder / text
        if not self._allow_outside and (Path(text).is_absolute() or ".." in Path(text).parts):
            raise ValueError(_outside(text))
        try:
            resolved = path.resolve(strict=True)
            if not self._allow_outside and not resolved.is_relative_to(self._root):
                raise ValueError(_outside(text))
            require_file(resolved)
        except FileNotFoundError:
            hint = f"; {_NO_WILDCARDS}" if WILDCARD.search(text) else ""
            raise ValueError(f"{quote(text)} does not exist{hint}") from None
        except OSError as error:
            raise ValueError(f"{quote(text)} cannot be read: {reason(error)}") from None
        except RuntimeError:  # how Python 3.11 tells of a loop
            raise ValueError(f"{quote(text)} is a loop of symbolic links") from None
        return path

    def folder(self, text: str) -> Path:
        """The existing folder that `text` names from the manifest's. Raises `ValueError`."""
        path = self._root / text
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError):  # how Python 3.11 tells of a loop
            raise ValueError(f"{quote(text)} is no folder") from None
        if not self._allow_outside and not resolved.is_relative_to(self._root):
            raise ValueError(_outside(text))
        if not resolved.is_dir():
            raise ValueError(f"{quote(text)} is no folder")
        return path

    def images(self, text: str, folder: Path) -> InputImage | PictureSet:
        """The picture that `text` names, or those of a folder or a pattern. Raises `ValueError`."""
        if "://" in text:
            return self.image(text, folder)
        if not self._allow_outside and (Path(text).is_absolute() or ".." in Path(text).parts):
            raise ValueError(_outside(text))
        try:
            names = files_named(text, folder)
        except OSError as error:
            raise ValueError(f"{quote(text)} cannot be read: {reason(error)}") from None
        if names is None:
            return self.image(text, folder)
        return PictureSet(text, tuple((stem_of(name), self.image(name, folder)) for name in names))

    def image(self, text: str, folder: Path) -> InputImage:
        """Picture that `text` names, from `folder` or as `s3://bucket/key`. Raises `ValueError`."""
        place = text if text.startswith(S3) else folder / text
        seen = self._seen.get(place)
        if seen is None:
            try:
                seen = self._read(text, folder)
            except ValueError as error:
                seen = str(error)
            self._seen[place] = seen
        if isinstance(seen, str):
            raise ValueError(seen)
        return seen

    def _read(self, text: str, folder: Path) -> InputImage:
        source = self.source(text, folder)
        data = source.read(MAX_IMAGE_BYTES)
        try:
            picture = read_picture(data)
            picture.fit("RGB", *TRIED)
        except PictureError as error:
            raise ValueError(f"{quote(text)} {error}") from None
        name = f"{hashlib.sha256(data).hexdigest()}.{picture.extension}"
        self.sources.setdefault(name, source)
        called = PurePosixPath(text).name
        if called != name:  # as it is in a job's folder
            self.names.setdefault(name, called)
        return InputImage(name, picture.size, stem_of(text))

    def source(self, text: str, folder: Path) -> Source:
        """Where the bytes are that `text` names, from `folder` or as `s3://bucket/key`; nothing is
        read. Raises `ValueError`.
        """
        if text.startswith(S3):
            return ObjectSource.parse(text, self._bucket)
        if "://" in text:
            raise ValueError(f"{quote(text)} is no local file, and no s3://bucket/key either")
        return FileSource(self.locate(text, folder), text)


def _outside(text: str) -> str:
    return (
        f"{quote(text)} is outside the manifest's folder; move the file there, or give "
        "--allow-outside"
    )
