"""A job as scripts and notebooks have it: its state, and its pictures with their records."""

from __future__ import annotations

import base64
import functools
import html
import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from rich.console import Console

from jobs.client.changes import CHANGES
from jobs.errors import InputError, NotFoundError
from jobs.folder.check import whole_image
from jobs.folder.job_file import read_job_file
from jobs.folder.layout import JobFolder
from jobs.folder.records import Record, read_failures, read_records
from jobs.formatting import counted
from jobs.ledger.base import Ledger
from jobs.ledger.types import JobState
from jobs.pictures.rules import PictureError, opened
from jobs.task import Failure
from jobs.terminal.figures import figures_of

if TYPE_CHECKING:
    import pandas

    from jobs.client.collect import Collected

SHEET_IMAGES = 24
"""Pictures that a notebook shows of a job."""

ENDED = (JobState.DONE, JobState.CANCELLED)


@dataclass(frozen=True)
class Status:
    """Where a job stands. images: of the whole job. state: of `jobs.ledger.types.JobState`; a job
    that no ledger knows is done, or active. reason: why it is paused, `budget` if nobody paused it.
    images_per_s, remaining_s: None where nobody renders.
    """

    job: str
    state: JobState
    images: int
    done: int
    failed: int
    error: str | None = None
    reason: str | None = None
    images_per_s: float | None = None
    remaining_s: float | None = None

    @property
    def ended(self) -> bool:
        """True if nothing more comes."""
        return self.state in ENDED


@dataclass(frozen=True)
class Picture:
    """A finished image, read from the store when it is asked for. record: how it was made."""

    record: Record
    _folder: JobFolder

    @functools.cached_property
    def data(self) -> bytes:
        """The image file, compared with its record. Raises `NotFoundError` if it is not there, or
        not what its record says, and `StoreError`.
        """
        key = self._folder.keys(self.record["path"])
        data = whole_image(self._folder.store, key, self.record["sha256"])
        if data is None:
            url = self._folder.url_of(key)
            raise NotFoundError(f"{url} is gone, or not what its record says: sdbatch verify")
        return data

    @functools.cached_property
    def image(self) -> Image.Image:
        """The picture, decoded. Raises like `data`."""
        try:
            with opened(self.data) as image:
                image.load()
                return image
        except PictureError as error:
            raise NotFoundError(f"{self.record['path']} {error}") from error

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.image.save(buffer, "PNG")
        return buffer.getvalue()


class Job:
    """A job, wherever it is made: here (`run`) or by workers (`submit`), or one of before (`find`).

    folder: its folder in a store. ledger: that steers it; None for a job of this process. Methods
    raise the errors of `jobs.errors`, such as `StoreError` and `LedgerError`.
    """

    def __init__(self, folder: JobFolder, ledger: Ledger | None = None) -> None:
        self.folder = folder
        self.ledger = ledger

    @property
    def name(self) -> str:
        """The job's name, which is that of its folder too."""
        return self.folder.keys.job_id

    @property
    def url(self) -> str:
        """Where its folder is, for people."""
        return self.folder.url

    def __repr__(self) -> str:
        return f"<Job {self.name} in {self.url}>"

    def status(self) -> Status:
        """Where it stands now."""
        if self.ledger is None:
            return self._status_of_folder()
        now = self.ledger.status(self.name)
        figures = figures_of(now)
        return Status(
            self.name,
            now.state,
            now.total,
            now.done,
            now.failed,
            now.error,
            now.reason,
            figures.images_per_s,
            figures.remaining_s,
        )

    def _status_of_folder(self) -> Status:
        images = read_job_file(self.folder).images
        done = sum(1 for _ in read_records(self.folder, images=images, skip_damaged=True))
        failed = len(read_failures(self.folder))
        ended = self.folder.head(self.folder.keys.done) is not None
        state = JobState.DONE if ended else JobState.ACTIVE
        return Status(self.name, state, images, done, failed)

    def wait(self, *, timeout_s: float | None = None, progress: bool = True) -> Status:
        """Where it stands once it has ended, its budget is used up, or so much time is gone; with
        progress on a terminal.

        Raises `InputError` for a job that no ledger knows and that is not done: nobody makes it.
        """
        if self.ledger is None:
            status = self._status_of_folder()
            if not status.ended:
                raise InputError(f"{self.name} is not finished, and nobody makes it; run it again")
            return status
        from jobs.client.watch import watch

        until = None if timeout_s is None else time.monotonic() + timeout_s
        console = Console(stderr=True, quiet=not progress, highlight=False, markup=False)
        watch(
            self.ledger,
            self.name,
            console,
            enough=lambda: until is not None and time.monotonic() >= until,
        )
        return self.status()

    def records(self) -> Iterator[Record]:
        """Records of the finished images, in the order of the plan."""
        return read_records(self.folder, needs=("sha256",))

    def images(self, *, containing: str | None = None) -> Iterator[Picture]:
        """The finished images, in the order of the plan; each is read when it is asked for.

        containing: only those whose prompt has this text, whatever its case.
        """
        wanted = "" if containing is None else containing.casefold()
        for record in self.records():
            if wanted in record.get("prompt", "").casefold():
                yield Picture(record, self.folder)

    def failures(self) -> list[Failure]:
        """Images that could not be made, with reasons."""
        if self.ledger is None:
            return read_failures(self.folder)
        return self.ledger.failures(self.name)

    def to_pandas(self) -> pandas.DataFrame:
        """The records as a table, a row for each finished image. Raises `InputError` without
        pandas or pyarrow.
        """
        from jobs.dataset.columns import Columns, rows

        try:
            import pandas  # noqa: F401 - what `to_pandas` needs
        except ModuleNotFoundError:
            raise InputError("tables here need pandas: pip install pandas") from None
        records = list(self.records())
        return rows(records, Columns(records).schema()).to_pandas()

    def collect(self, destination: str | os.PathLike[str], *, form: str = "files") -> Collected:
        """Copy its images into a folder, each checked; see `sdbatch collect`.

        form: files, webdataset, parquet, captions or hf. Raises `InputError` for another.
        """
        from jobs.client.collect import collect, collect_as, refuse_same
        from jobs.dataset import Form

        target = Path(destination)
        refuse_same(self.folder.store, target)
        if form == "files":
            return collect(self.folder, target)
        if form not in list(Form):
            raise InputError(f"form {form!r:.40} is none of files, {', '.join(Form)}")
        return collect_as(Form(form), self.folder, target)

    def pause(self) -> None:
        """Let it rest; images being rendered are finished."""
        CHANGES["pause"](self._steered(), self.name)

    def unpause(self) -> None:
        """Let it go on."""
        CHANGES["unpause"](self._steered(), self.name)

    def cancel(self) -> None:
        """End it; finished images stay."""
        CHANGES["cancel"](self._steered(), self.name)

    def retry(self) -> int:
        """Have its failed images rendered again; how many they are."""
        return self._steered().retry(self.name)

    def _steered(self) -> Ledger:
        if self.ledger is None:
            raise InputError(f"{self.name} is not in a ledger, so there is nothing to steer")
        return self.ledger

    def _repr_html_(self) -> str:
        """A contact sheet of the first images, for notebooks."""
        from jobs.report.sheets import contact_sheet

        status = self.status()
        failed = f", {status.failed:,} failed" if status.failed else ""
        told = f"{status.state}, {status.done:,} of {counted(status.images, 'image')}{failed}"
        head = f"<p><b>{html.escape(self.name)}</b> {html.escape(told)}</p>"
        first = list(islice(self.records(), SHEET_IMAGES))
        if not first:
            return head
        sheet = base64.b64encode(contact_sheet(self.folder, first)).decode()
        return f'{head}<img alt="pictures" src="data:image/jpeg;base64,{sheet}">'
