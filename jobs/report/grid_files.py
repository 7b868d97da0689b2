"""Writes a grid into a folder of this machine. An earlier one there is replaced.

    index.html          all of it, with thumbnails
    grid-000.png, …     pages of it, to send to somebody
    images/000017.jpg   thumbnails

Thumbnails of images that are there no more are left.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobs.errors import InputError
from jobs.folder.check import AT_ONCE, THREADS, whole_image
from jobs.folder.job_file import read_job_file
from jobs.folder.layout import JobFolder
from jobs.folder.plan import read_plan
from jobs.folder.records import Record, read_failures, read_records
from jobs.formatting import reason
from jobs.pictures.rules import PictureError, opened
from jobs.report.axes import chosen, varying
from jobs.report.grid import Grid, Picture, arranged
from jobs.report.grid_page import grid_page
from jobs.report.grid_sheets import grid_sheets
from jobs.report.sheets import CELL, fitted
from jobs.storage import LocalStore
from jobs.task import Task

MOST_IMAGES = 5_000
"""Images of a job that a grid is made of."""


def write_grid(
    folder: JobFolder,
    target: Path,
    axes: Sequence[str | None],
    *,
    tick: Callable[[int], None] = lambda done: None,
) -> Grid:
    """Makes the grid of a job, finished or not, in a folder of this machine.

    axes: x, y and z as people give them, or None. tick: told how many images were looked at.
    Raises `InputError`, `StoreError` and `NotFoundError`.
    """
    count = read_job_file(folder).images
    if count > MOST_IMAGES:
        raise InputError(
            f"{folder.url} has {count:,} images; a grid is made of at most {MOST_IMAGES:,}"
        )
    tasks = list(read_plan(folder))
    x, y, z = chosen(varying(tasks), axes)
    try:
        (target / "images").mkdir(parents=True, exist_ok=True)
        pictures = _pictures(folder, tasks, target, tick)
        grid = Grid(target, folder.keys.job_id, x, y, z, arranged(pictures, x, y, z))
        grid.shown = sum(picture.thumbnail is not None for picture in pictures)
        grid.missing = len(pictures) - grid.shown
        for number, page in enumerate(grid_sheets(grid)):
            name = f"grid-{number:03d}.png"
            (target / name).write_bytes(page)
            grid.pages.append(name)
        for earlier in target.glob("grid-[0-9][0-9][0-9].png"):
            if earlier.name not in grid.pages:
                earlier.unlink()
        (target / "index.html").write_text(grid_page(grid), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{target} cannot be written: {reason(error)}") from None
    return grid


def _pictures(
    folder: JobFolder, tasks: Sequence[Task], target: Path, tick: Callable[[int], None]
) -> list[Picture]:
    needs = ("path", "sha256")
    records = {r["index"]: r for r in read_records(folder, needs=needs, images=len(tasks))}
    failed = {failure.index for failure in read_failures(folder)}
    looked_at = itertools.count(1)

    def look(task: Task) -> Picture:
        record = records.get(task.index)
        if record is not None:
            picture = _thumbnail(folder, task, record, target)
        else:
            why = "failed" if task.index in failed else Picture.missing
            picture = Picture(task, missing=why)
        tick(next(looked_at))
        return picture

    found: list[Picture] = []
    with ThreadPoolExecutor(THREADS, thread_name_prefix="sdbatch-grid") as pool:
        for start in range(0, len(tasks), AT_ONCE):
            found += pool.map(look, tasks[start : start + AT_ONCE])
    return found


def _thumbnail(folder: JobFolder, task: Task, record: Record, target: Path) -> Picture:
    key = folder.keys(record["path"])
    data = whole_image(folder.store, key, record["sha256"])
    try:
        if data is None:
            raise PictureError("is gone or damaged")
        with opened(data) as image:
            small = fitted(image, (CELL, 2 * CELL))
    except PictureError:
        return Picture(task, missing="damaged")
    name = f"images/{task.index:06d}.jpg"
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=90)
    (target / name).write_bytes(buffer.getvalue())
    store = folder.store
    here = os.path.relpath(store.root / key, target) if isinstance(store, LocalStore) else None
    return Picture(task, name, here)
