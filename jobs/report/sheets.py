"""Contact sheets: a hundred pictures at a glance, in one JPEG that any viewer opens."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from jobs.errors import DamagedError, NotFoundError
from jobs.folder.layout import JobFolder
from jobs.folder.records import Record
from jobs.limits import MAX_RENDERED_BYTES
from jobs.pictures.rules import PictureError, opened
from jobs.report.captions import lines_within, swept_values
from jobs.report.fonts import font
from jobs.storage import Store

SHEET_SIZE = 100
"""Most pictures on one sheet."""

SHEET_LIMIT = 10
"""Most sheets of one job: beyond a thousand pictures nobody looks at sheets."""

# Pixels.
CELL = 192
GAP = 12
CAPTION = 22
FONT = 13
SWEPT_LINE = 17
SWEPT_FONT = 11

SWEPT_LINES = 2
"""Lines of a caption for what was swept."""

BACKGROUND = (246, 246, 244)
EMPTY = (228, 228, 225)
INK = (82, 82, 78)
QUALITY = 88


def contact_sheet(
    folder: JobFolder,
    records: Sequence[Record],
    note: str | None = None,
    *,
    swept: Sequence[str] = (),
) -> bytes:
    """A JPEG of the images of `records`, each above its index and seed; at least one record.

    An image that is missing or damaged leaves its place empty and says so. note: a line above all.
    swept: fields whose values stand below index and seed, in up to `SWEPT_LINES` lines.
    """
    columns = columns_of(records)
    rows = math.ceil(len(records) / columns)
    height = _cell_height(records)
    below = [_swept_lines(record, swept) for record in records]
    caption_height = CAPTION + SWEPT_LINE * max(map(len, below))
    top = 0 if note is None else CAPTION
    width = GAP + columns * (CELL + GAP)
    size = width, top + GAP + rows * (height + caption_height + GAP)
    sheet = Image.new("RGB", size, BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    if note is not None:
        _write(pen, note, (width / 2, (GAP + CAPTION) / 2), width - 2 * GAP)
    for place, record in enumerate(records):
        x = GAP + place % columns * (CELL + GAP)
        y = top + GAP + place // columns * (height + caption_height + GAP)
        picture = _thumbnail(folder.store, folder.keys(record["path"]), height)
        caption = f"{record['index']}  ·  seed {record['seed']}"
        if picture is None:
            pen.rectangle((x, y, x + CELL - 1, y + height - 1), fill=EMPTY)
            caption += "  ·  missing"
        else:
            sheet.paste(picture, (x + (CELL - picture.width) // 2, y + height - picture.height))
        _write(pen, caption, (x + CELL / 2, y + height + CAPTION / 2))
        for number, line in enumerate(below[place]):
            middle = y + height + CAPTION + SWEPT_LINE * (number + 0.5) - 2
            pen.text((x + CELL / 2, middle), line, INK, font(SWEPT_FONT), anchor="mm")
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return buffer.getvalue()


def _swept_lines(record: Record, swept: Sequence[str]) -> list[str]:
    facts = swept_values(record, swept)
    return lines_within(facts, CELL, SWEPT_LINES, lambda text: font(SWEPT_FONT).getlength(text))


def _write(
    pen: ImageDraw.ImageDraw, text: str, centre: tuple[float, float], room: float = CELL
) -> None:
    """One line, set smaller where it is wider than its room: seeds have up to 20 digits."""
    font = ImageFont.load_default(FONT)
    width = font.getlength(text)
    if width > room:
        font = ImageFont.load_default(FONT * room / width)
    pen.text(centre, text, INK, font, anchor="mm")


def columns_of(records: Sequence[Record]) -> int:
    """Columns of a sheet: about as wide as high, and no last row with a single picture in it."""
    count = len(records)
    square = math.ceil(math.sqrt(count))
    choices = [n for n in (square, square + 1) if n <= count and count % n != 1]
    return choices[0] if choices else square


def _cell_height(records: Sequence[Record]) -> int:
    """Pixels for a picture: as high as the highest of them needs, at most twice the width."""
    tallest = max(record["height"] / record["width"] for record in records)
    return max(CELL // 4, min(2 * CELL, round(CELL * tallest)))


def _thumbnail(store: Store, key: str, height: int) -> Image.Image | None:
    """The image within (CELL, height); None where there is none to read."""
    try:
        with opened(store.get(key, limit_bytes=MAX_RENDERED_BYTES)) as image:
            return fitted(image, (CELL, height))
    except (NotFoundError, DamagedError, PictureError):
        return None


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An opened picture, as large as the size has room for. Raises `PictureError`."""
    image.draft("RGB", size)  # a JPEG is decoded at a fraction of its size
    return ImageOps.contain(image.convert("RGB"), size, Image.Resampling.LANCZOS)
