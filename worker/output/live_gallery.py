"""Keeps the gallery of a run up to date while it renders."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

from jobs.errors import SdbatchError
from jobs.folder.layout import JobFolder
from jobs.report import REFRESH_S, LiveGallery

log = logging.getLogger(__name__)


@contextlib.contextmanager
def gallery_kept_up_to_date(
    folder: JobFolder, *, planned: int, every_s: float = REFRESH_S
) -> Iterator[None]:
    """Writes the gallery every minute, in a thread that is gone at the end. A run goes on whatever
    is wrong with its gallery; that is said once.

    planned: images of the job.
    """
    stop = threading.Event()

    def keep() -> None:
        gallery = LiveGallery(folder, planned)
        is_told = False
        while not stop.wait(every_s):
            try:
                gallery.refresh(go_on=lambda: not stop.is_set())
            except SdbatchError as error:
                if not is_told:
                    log.warning("there is no gallery for now: %s", error)
                is_told = True
            except Exception:
                log.exception("there is no gallery until the run ends")
                return

    thread = threading.Thread(target=keep, name="sdbatch-gallery", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
