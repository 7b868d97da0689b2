"""Init images and masks as files: the rules for them, at submit and in a worker.

The bytes come from anybody. They are opened as PNG, JPEG or WebP and as nothing else, whatever the
file is called, and memory and time are bounded before anything is decoded.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import ExifTags, Image, UnidentifiedImageError

from jobs.limits import MAX_DIRECTORY_BYTES, MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, MAX_SCANNED_PIXELS
from jobs.pictures.parts import directory_bytes, survey
from jobs.pictures.pixels import Pixels, eight_bit, fit, upright

# Pillow's names of formats -> file extension. MPO is how phones write some of their JPEGs.
_EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp"}

_FORMATS = ("PNG", "JPEG", "WEBP")

_LISTED = "Raw profile type exif"  # where ImageMagick keeps EXIF data in a PNG, as hex digits


class PictureError(ValueError):
    """Bytes that are no picture for us. The text goes on after the file's name: `is damaged: …`."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded file. extension: of its format. image: held upright, 8 bits a channel."""

    extension: str
    image: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, of the picture held upright."""
        return self.image.size

    def fit(self, mode: str, width: int, height: int) -> Pixels:
        """See `jobs.pictures.pixels.fit`. Raises `PictureError`."""
        with _explained():
            return fit(self.image, mode, width, height)


def read_picture(data: bytes) -> Picture:
    """The picture in a file of these bytes, decoded whole. Raises `PictureError`."""
    with opened(data) as image:
        extension = _EXTENSIONS[str(image.format)]
        image.load()
        depth = data[24] if extension == "png" else 8  # of the header, which is always first
        return Picture(extension, upright(eight_bit(image, depth), _orientation(image)))


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """An image file whose header was read and found good, nothing decoded yet.

    Raises `PictureError` for what is wrong with it, also while the caller decodes it.
    """
    with _explained(), warnings.catch_warnings():
        # Pillow warns of large pictures from a size of its own on, and of damaged EXIF data.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        if len(data) > MAX_IMAGE_BYTES:
            raise PictureError(f"is larger than {MAX_IMAGE_BYTES // 2**20} MiB")
        parts = survey(data)
        _check_directories(parts.directory_bytes)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            pixels = image.width * image.height
            if pixels > MAX_IMAGE_PIXELS:
                size = f"{image.width}×{image.height} pixels"
                raise PictureError(f"has {size}, more than {MAX_IMAGE_PIXELS:,}; scale it down")
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise PictureError("is an animation; expected a still picture")
            if parts.passes * pixels > MAX_SCANNED_PIXELS:
                raise PictureError("goes over its pixels too often; save it as a plain JPEG")
            yield image


def _orientation(image: Image.Image) -> object:
    """The orientation that a loaded image's EXIF data or XMP name; None where there is none."""
    if "exif" not in image.info and _LISTED in image.info:
        digits = "".join(image.info[_LISTED].split("\n")[3:])
        with contextlib.suppress(ValueError):
            image.info["exif"] = bytes.fromhex(digits)
    _check_directories(directory_bytes(image.info.get("exif", b"").removeprefix(b"Exif\0\0")))
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # of many kinds, for EXIF data that is damaged; the picture is not
        return None


def _check_directories(most_bytes: int) -> None:
    if most_bytes > MAX_DIRECTORY_BYTES:
        raise PictureError("has EXIF data out of all proportion; remove it")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turns whatever Pillow raises, which is of many kinds, into a `PictureError`."""
    try:
        yield
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError("is not a PNG, JPEG or WebP image") from None
    except Image.DecompressionBombError:
        raise PictureError(f"has more than {MAX_IMAGE_PIXELS:,} pixels; scale it down") from None
    except MemoryError:
        raise PictureError("does not fit into memory; scale it down") from None
    except Exception as error:
        raise PictureError(f"is damaged: {error}" if str(error) else "is damaged") from error
