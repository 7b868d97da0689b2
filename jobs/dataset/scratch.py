"""A folder for files that are too large for memory, on their way to a store."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jobs.errors import StoreError
from jobs.formatting import reason


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder that is gone afterwards; TMPDIR says where. Ten thousand images of 512×512
    are some five gigabytes.

    Raises `StoreError` where the system refuses, as when its disk is full.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="sdbatch-") as folder:
            yield Path(folder)
    except OSError as error:
        raise StoreError(
            f"{tempfile.gettempdir()}: {reason(error)}; a tar of a data set is made there first, "
            "and TMPDIR names another folder"
        ) from error
