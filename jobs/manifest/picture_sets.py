"""Init images and masks of a prompt: one, or those of a folder or a pattern, matched by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from jobs.formatting import counted, quote

if TYPE_CHECKING:
    from jobs.manifest.input_images import InputImage

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
"""Files of a folder that are taken for pictures; others, such as captions, are left alone."""

MOST_PICTURES = 10_000
"""Pictures of one folder or pattern."""

WILDCARD = re.compile(r"[*?]|\[.+\]")

_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class PictureSet:
    """Pictures that one text names. text: as the manifest has it. images: in order, each with the
    name of its file without the ending.
    """

    text: str
    images: tuple[tuple[str, InputImage], ...]

    def only(self, stem: str) -> InputImage:
        """The one that is called so. Raises `ValueError` if there is none, or several are."""
        found = [image for name, image in self.images if name == stem]
        if len(found) != 1:
            how = "none" if not found else f"{len(found)} files"
            raise ValueError(f"{quote(self.text)} has {how} called {quote(stem)}")
        return found[0]


def files_named(text: str, folder: Path) -> list[str] | None:
    """Paths, from `folder`, of the pictures of a folder or a pattern, in the order that a person
    would count them in; None if the text names a single file.

    Raises `ValueError` if there are none, or too many.
    """
    path = folder / text
    if path.is_dir():
        found: Iterator[Path] = path.iterdir()
    elif WILDCARD.search(text) and not path.exists():
        anchor = Path(path.anchor) if path.is_absolute() else folder
        found = anchor.glob(str(path.relative_to(anchor)))
    else:
        return None
    pictures = (one for one in found if _is_picture(one))
    some = islice(pictures, MOST_PICTURES + 1)
    is_absolute = Path(text).is_absolute()
    names = [str(one if is_absolute else one.relative_to(folder)) for one in some]
    if len(names) > MOST_PICTURES:
        raise ValueError(f"{quote(text)} names more than {counted(MOST_PICTURES, 'picture')}")
    if not names:
        raise ValueError(f"{quote(text)} has no pictures ({', '.join(ENDINGS)})")
    return sorted(names, key=_counted)


def stem_of(text: str) -> str:
    """The name of a file without folder and ending."""
    return PurePath(text).stem


def _is_picture(path: Path) -> bool:
    is_hidden = path.name.startswith(".")
    return not is_hidden and path.suffix.lower() in ENDINGS and path.is_file()


def _counted(name: str) -> list[tuple[int, str]]:
    """Orders 2.png before 10.png."""
    parts = _DIGITS.split(name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def matched(
    init_image: InputImage | PictureSet | None, mask: InputImage | PictureSet | None
) -> list[tuple[InputImage | None, InputImage | None]]:
    """Each init image with its mask. A mask alone is that of all; those of a set go by the names of
    files.

    Raises `ValueError` if an init image has no mask of its name.
    """
    if isinstance(init_image, PictureSet):
        named = list(init_image.images)
    else:
        named = [] if init_image is None else [(init_image.stem, init_image)]
    if not named:
        return [(None, None)]
    if isinstance(mask, PictureSet):
        return [(image, mask.only(stem)) for stem, image in named]
    return [(image, mask) for _, image in named]
