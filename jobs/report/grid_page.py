"""The page of a grid: one HTML file beside its thumbnails, without a script.

Prompts and labels are other people's text: all of it is escaped, and the page's policy lets no
script run.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from importlib.resources import files
from urllib.parse import quote

from jobs.formatting import counted
from jobs.report.gallery import source_hash
from jobs.report.grid import Grid, Picture, Section


def grid_page(grid: Grid) -> str:
    """The page, as HTML."""
    style = files("jobs.report").joinpath("grid.css").read_text("utf-8")
    policy = f"default-src 'none'; img-src 'self' file:; style-src '{source_hash(style)}'"
    missing = f", {grid.missing:,} missing" if grid.missing else ""
    axes = ", ".join(
        f"{place} {axis.name}"
        for place, axis in (("x", grid.x), ("y", grid.y), ("z", grid.z))
        if axis is not None
    )
    title = html.escape(grid.job)
    return "".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{style}</style></head><body>\n",
            f"<h1>{title}</h1>\n<p>{counted(grid.shown, 'image')}{missing}; ",
            f"{html.escape(axes)}</p>\n",
            *(_table(section, grid) for section in grid.sections),
            "</body></html>\n",
        )
    )


def _table(section: Section, grid: Grid) -> str:
    title = "" if section.title is None else f"<h2>{html.escape(section.title)}</h2>\n"
    columns, rows = grid.columns, grid.rows
    corner = " / ".join(axis.name for axis in (grid.y, grid.x) if axis is not None)
    head = "".join(f'<th scope="col">{html.escape(label)}</th>' for label in columns)
    top = f"<thead><tr><th>{html.escape(corner)}</th>{head}</tr></thead>\n"
    body = "".join(_row(section, number, label, len(columns)) for number, label in enumerate(rows))
    return f'{title}<div class="grid"><table>{top}<tbody>\n{body}</tbody></table></div>\n'


def _row(section: Section, number: int, label: str, columns: int) -> str:
    cells = "".join(
        f"<td>{''.join(_pictures(section.cells.get((column, number), ())))}</td>"
        for column in range(columns)
    )
    told = html.escape(label)
    return f'<tr><th scope="row"><div title="{told}">{told}</div></th>{cells}</tr>\n'


def _pictures(pictures: Sequence[Picture]) -> Iterator[str]:
    for picture in pictures:
        task = picture.task
        told = html.escape(f"{task.index}, seed {task.sampling.seed}: {task.prompt}")
        if picture.thumbnail is None:
            yield f'<span class="missing" title="{told}">{picture.missing}</span>'
            continue
        image = f'<img src="{quote(picture.thumbnail)}" alt="{told}" title="{told}" loading="lazy">'
        address = None if picture.original is None else quote(picture.original)
        yield image if address is None else f'<a href="{address}">{image}</a>'
