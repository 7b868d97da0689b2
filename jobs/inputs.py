"""Files that a manifest names: where they may lie, and what an init image or mask must be."""

from __future__ import annotations

import hashlib
import io
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from jobs.limits import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from jobs.problems import quote

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

    files: name in the job's folder -> where the file lies.
    """

    def __init__(self, root: Path, *, allow_outside: bool) -> None:
        """root: the folder that paths must stay in, unless `allow_outside`."""
        self.files: dict[str, Path] = {}
        self._root = root.resolve()
        self._allow_outside = allow_outside
        self._seen: dict[Path, InputImage | str] = {}

    def locate(self, text: str, folder: Path) -> Path:
        """The existing regular file that `text` names from `folder`. Raises `ValueError`."""
        if "://" in text:
            raise ValueError(f"{quote(text)} is an address; this release reads local files only")
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
        """The image that `text` names from `folder`. Raises `ValueError`."""
        path = folder / text
        seen = self._seen.get(path)
        if seen is None:
            try:
                seen = self._read(text, folder)
            except ValueError as error:
                seen = str(error)
            self._seen[path] = seen
        if isinstance(seen, str):
            raise ValueError(seen)
        return seen

    def _read(self, text: str, folder: Path) -> InputImage:
        path = self.locate(text, folder)
        try:
            data = read_file(path, MAX_IMAGE_BYTES)
        except OSError as error:
            raise ValueError(f"{quote(text)} cannot be read: {reason(error)}") from None
        try:
            extension, size = _inspect(data)
        except ValueError as error:
            raise ValueError(f"{quote(text)} {error}") from None
        name = f"{hashlib.sha256(data).hexdigest()}.{extension}"
        self.files.setdefault(name, path)
        return InputImage(name, size)


def require_file(path: Path) -> None:
    """Raise `OSError` unless this is a regular file: reading a pipe or device may never end."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise OSError("it is a folder")
    if not stat.S_ISREG(mode):
        raise OSError("it is not a regular file")


def read_file(path: Path, limit_bytes: int) -> bytes:
    """The bytes of a regular file. Raises `OSError`, also for one larger than the limit."""
    require_file(path)
    with path.open("rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise OSError(f"it is larger than {limit_bytes // 2**20} MiB")
    return data


def reason(error: OSError) -> str:
    """Why, without the path, which the message has already."""
    why = error.strerror or str(error)
    return why[:1].lower() + why[1:]


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
