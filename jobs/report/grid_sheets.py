"""Pages of a grid as PNG: labelled contact sheets, each small enough for any viewer."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw

from jobs.report.fonts import font
from jobs.report.grid import Grid, Picture, Section
from jobs.report.sheets import BACKGROUND, EMPTY, GAP, INK

SIDE = 4_000
"""Pixels of a page's side, about: more columns or rows go on the next page."""

MOST_PAGES = 100

MOST_IN_CELL = 16
"""Images of one cell that a page shows."""

# Pixels.
LABEL_WIDTH = 200
FONT = 16
LINE = 21
MOST_LINES = 4


def grid_sheets(grid: Grid) -> Iterator[bytes]:
    """PNG files, section by section, of at most `MOST_PAGES`."""
    columns, rows = grid.columns, grid.rows
    pages = 0
    for section in grid.sections:
        width, height = _cell_size(grid, section)
        across, down = max(1, SIDE // (width + GAP)), max(1, SIDE // (height + GAP))
        for top in range(0, len(rows), down):
            for left in range(0, len(columns), across):
                if pages == MOST_PAGES:
                    return
                pages += 1
                x = range(left, min(left + across, len(columns)))
                y = range(top, min(top + down, len(rows)))
                yield _page(grid, section, (width, height), x, y)


def _cell_size(grid: Grid, section: Section) -> tuple[int, int]:
    """Room for the fullest cell, whose pictures stand side by side."""
    sizes = [_size(grid, picture) for pictures in section.cells.values() for picture in pictures]
    most = min(MOST_IN_CELL, max(len(pictures) for pictures in section.cells.values()))
    width, height = max(w for w, _ in sizes), max(h for _, h in sizes)
    return most * (width + 2) - 2, height


def _size(grid: Grid, picture: Picture) -> tuple[int, int]:
    if picture.thumbnail is None:
        return 128, 128
    with Image.open(grid.folder / picture.thumbnail) as image:
        return image.size


def _page(
    grid: Grid, section: Section, cell: tuple[int, int], columns: range, rows: range
) -> bytes:
    width, height = cell
    axes = ", ".join(f"{n} {a.name}" for n, a in (("x", grid.x), ("y", grid.y)) if a is not None)
    title = " · ".join(filter(None, (grid.job, axes, section.title)))
    head = [_wrapped(label, width) for label in grid.columns[columns.start : columns.stop]]
    top = GAP + LINE + GAP + LINE * max(map(len, head)) + GAP
    left = GAP + (LABEL_WIDTH + GAP if grid.y is not None else 0)
    size = left + len(columns) * (width + GAP), top + len(rows) * (height + GAP)
    page = Image.new("RGB", (max(size[0], 400), size[1]), BACKGROUND)
    pen = ImageDraw.Draw(page)
    pen.text((GAP, GAP), _short(title, page.width - 2 * GAP), INK, font(FONT))
    for across, lines in enumerate(head):
        x = left + across * (width + GAP) + width // 2
        for number, line in enumerate(lines):
            y = top - GAP - LINE * (len(lines) - number)
            pen.text((x, y), line, INK, font(FONT), anchor="ma")
    for down, label in enumerate(grid.rows[rows.start : rows.stop]):
        lines = _wrapped(label, LABEL_WIDTH)
        y = top + down * (height + GAP) + (height - LINE * len(lines)) // 2
        for number, line in enumerate(lines):
            pen.text((GAP, y + number * LINE), line, INK, font(FONT))
    for down, row in enumerate(rows):
        for across, column in enumerate(columns):
            corner = left + across * (width + GAP), top + down * (height + GAP)
            _draw(page, pen, grid, section.cells.get((column, row), ()), corner, height)
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    return buffer.getvalue()


def _draw(
    page: Image.Image,
    pen: ImageDraw.ImageDraw,
    grid: Grid,
    pictures: Sequence[Picture],
    place: tuple[int, int],
    height: int,
) -> None:
    x, y = place
    for picture in pictures[:MOST_IN_CELL]:
        if picture.thumbnail is None:
            side = min(128, height)
            pen.rectangle((x, y, x + 127, y + side - 1), fill=EMPTY)
            centre = x + 64, y + side / 2
            pen.text(centre, picture.missing, INK, font(FONT), anchor="mm")
            x += 130
            continue
        with Image.open(grid.folder / picture.thumbnail) as image:
            page.paste(image, (x, y + (height - image.height) // 2))
            x += image.width + 2


def _wrapped(text: str, width: int) -> list[str]:
    """Lines within a width, at most `MOST_LINES`; an ellipsis says that there is more."""
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < MOST_LINES:
        line = words.pop(0)
        while words and font(FONT).getlength(f"{line} {words[0]}") <= width:
            line += f" {words.pop(0)}"
        lines.append(_short(line, width))
    if words:
        lines[-1] = _short(f"{lines[-1]} {words[0]}…", width, more=True)
    return lines or [""]


def _short(text: str, width: int, *, more: bool = False) -> str:
    """A text that fits into a width. more: it ends with an ellipsis in any case."""
    if font(FONT).getlength(text) <= width:
        return text
    while text and font(FONT).getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip('…')}…" if text or more else ""
