"""One cluster a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from jobs.errors import InputError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Holds the folder's lock; gives its descriptor, for servers to hold it as long as they live.

    Raises `InputError` if another cluster has it, `OSError` if the folder cannot be written.
    """
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"a local cluster runs in {folder} already; end that one, or give this one another "
                "--folder"
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)
