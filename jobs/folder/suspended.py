"""Images that were left half-way: their trajectories, kept in the job's folder for the next worker.

They save work and decide nothing. One that is lost, damaged or of another machine only means that
its image begins at the first step, so every failure here is a log line.
"""

from __future__ import annotations

import logging
import threading

from jobs.errors import SdbatchError
from jobs.folder.layout import JobFolder

log = logging.getLogger(__name__)


class SavedImages:
    """The saved trajectories of a job as they were when first asked; threads may share it."""

    def __init__(self, folder: JobFolder) -> None:
        self._folder = folder
        self._known: set[str] | None = None
        self._lock = threading.Lock()

    def take(self, index: int, spec: str, *, limit_bytes: int) -> bytes | None:
        """State in which an image was left; None if there is none.

        spec: digest of the image, 64 hex digits.
        limit_bytes: more than such an image's state has (`largest_state` of
            `sd_core.engine.model_runner`); no more is read.
        """
        key = self._folder.keys.saved(index, spec)
        try:
            if key not in self._list():
                return None
            return self._folder.get(key, limit_bytes=limit_bytes)
        except SdbatchError as error:
            log.warning("begins anew: %s", error)
            return None

    def keep(self, index: int, spec: str, state: bytes) -> None:
        key = self._folder.keys.saved(index, spec)
        try:
            self._folder.put(key, state, overwrite=True)
        except SdbatchError as error:
            log.warning("will begin anew: %s", error)
        else:
            log.info("saved between two steps")

    def drop(self, index: int, spec: str) -> None:
        """The image is finished."""
        key = self._folder.keys.saved(index, spec)
        with self._lock:
            if self._known is None or key not in self._known:
                return
            self._known.discard(key)
        self._delete(key)

    def drop_all(self) -> None:
        """The job is finished."""
        try:
            left = [info.key for info in self._folder.list(self._folder.keys.saved_prefix)]
        except SdbatchError as error:
            log.warning("saved images are left behind: %s", error)
            return
        for key in left:
            self._delete(key)

    def _list(self) -> set[str]:
        with self._lock:
            if self._known is None:
                saved = self._folder.list(self._folder.keys.saved_prefix)
                self._known = {info.key for info in saved}
            return self._known

    def _delete(self, key: str) -> None:
        try:
            self._folder.delete(key)
        except SdbatchError as error:
            log.warning("a saved image is left behind: %s", error)
