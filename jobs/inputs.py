"""What a manifest names: where files may lie, and what an init image or mask must be."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from jobs.limits import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from jobs.problems import quote
from jobs.sources import S3, FileSource, ObjectSource, Source, reason, require_file
from jobs.storage import open_store

# What Pillow calls a format -> file extension. MPO is how phones write some of their JPEGs.
_EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp"}

_ON_ITS_SIDE = (5, 6, 7, 8)  # Exif orientations whose rows are columns


@dataclass(frozen=True, slots=True)
class InputImage:
    """An init image or mask that was read and found good.

    name: `<sha256 of the file's bytes>.<png|jpg|webp>`, what it is called in the job's folder.
    size: (width, height) in pixels, of the picture held upright.
    """

    name: str
    size: tuple[int, int]


class Inputs:
    """The images of one manifest. Each is read once, however many prompts name it.

    sources: name in the job's folder -> where its bytes are.
    """

    def __init__(self, root: Path, *, allow_outside: bool) -> None:
        """root: the folder that paths must stay in, unless `allow_outside`."""
        self.sources: dict[str, Source] = {}
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
            raise ValueError(f"{quote(text)} does not exist") from None
        except OSError as error:
            raise ValueError(f"{quote(text)} cannot be read: {reason(error)}") from None
        except RuntimeError:  # how Python 3.11 tells of a loop
            raise ValueError(f"{quote(text)} is a loop of symbolic links") from None
        return path

    def image(self, text: str, folder: Path) -> InputImage:
        """What `text` names, from `folder` or as `s3://bucket/key`. Raises `ValueError`."""
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
        source = self._source(text, folder)
        data = source.read(MAX_IMAGE_BYTES)
        try:
            extension, size = _inspect(data)
        except ValueError as error:
            raise ValueError(f"{quote(text)} {error}") from None
        name = f"{hashlib.sha256(data).hexdigest()}.{extension}"
        self.sources.setdefault(name, source)
        return InputImage(name, size)

    def _source(self, text: str, folder: Path) -> Source:
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


def _inspect(data: bytes) -> tuple[str, tuple[int, int]]:
    """Extension and (width, height) of an image file, after decoding it whole."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images from a size of its own on; the limit here is ours.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
                width, height = image.size
                if width * height > MAX_IMAGE_PIXELS:
                    size = f"{width}×{height} pixels"
                    raise ValueError(f"has {size}, more than {MAX_IMAGE_PIXELS:,}; scale it down")
                if getattr(image, "is_animated", False) and image.format != "MPO":
                    raise ValueError("is an animation; expected a still picture")
                image.load()
                if image.getexif().get(ExifTags.Base.Orientation) in _ON_ITS_SIDE:
                    width, height = height, width
                return _EXTENSIONS[str(image.format)], (width, height)
    except UnidentifiedImageError:
        raise ValueError("is not a PNG, JPEG or WebP image") from None
    except Image.DecompressionBombError:
        raise ValueError(f"has more than {MAX_IMAGE_PIXELS:,} pixels; scale it down") from None
    except (OSError, SyntaxError, EOFError, OverflowError, MemoryError) as error:
        raise ValueError(f"is damaged: {error}") from None
