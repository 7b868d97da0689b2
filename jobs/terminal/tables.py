"""Tables in plain text, under headers, for terminals of any width and for pipes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = Sequence[str]

_GAP = 2
_MARK = "•"
_SHORT = 12  # cells that are not folded, where the terminal is wide enough for a few of them
_WIDE_ENOUGH = 60


def table_lines(headers: Row, rows: Sequence[Row], *, width: int | None) -> Iterator[str]:
    """A line of headers and one for each row, their cells below each other.

    width: columns of the terminal; None for a pipe. Where a line would be wider, the first cell of
    each row, which is its name, gets a line of its own, and then other cells are folded. Nothing is
    ever left out.
    """
    widths = [max(map(cell_len, column)) for column in zip(headers, *rows, strict=True)]
    if width is None or sum(widths) + _GAP * (len(widths) - 1) <= width:
        for row in (headers, *rows):
            cells = map(set_cell_size, row, widths)
            yield (_GAP * " ").join(cells).rstrip()
        return
    yield headers[0]
    # The mark tells the first line of a row from those that its folded cells go on in.
    marked = [[_MARK, *row[1:]] for row in rows]
    names = iter(row[0] for row in rows)
    for line in _folded(["", *headers[1:]], marked, width):
        if line.startswith(_MARK):
            yield next(names)
        yield f" {line[1:]}"


def _folded(headers: Row, rows: Sequence[Row], width: int) -> Iterator[str]:
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for number, header in enumerate(headers):
        widest = max((cell_len(row[number]) for row in rows), default=0)
        keep = widest <= _SHORT and width >= _WIDE_ENOUGH
        table.add_column(header, no_wrap=keep, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    page = io.StringIO()
    Console(file=page, width=width, color_system=None).print(table)
    for line in page.getvalue().splitlines():
        yield line.rstrip()
