"""Contents of files on the device: those of images in the engine, and the latest used.

Nothing here runs on the engine's thread but giving back: so a batch goes on while a file is read,
by a thread that gives way to it.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from sd_core.engine.low_priority import low_priority_thread
from sd_core.engine.request import EngineClosedError
from sd_core.weights.errors import CheckpointError


class File(Protocol):
    """A file that an image brings along, and the sha256 of its bytes."""

    @property
    def file(self) -> Path: ...
    @property
    def sha256(self) -> str: ...


class Content(Protocol):
    """A file as it was read. nbytes: that it takes on the device."""

    @property
    def nbytes(self) -> int: ...


F = TypeVar("F", bound=File)
C = TypeVar("C", bound=Content)


class HeldFiles(Generic[F, C]):
    """Contents by sha256. Threads may share it.

    limit_bytes: that they may take together. read: gives the content of a file, and raises what is
    wrong with it.
    """

    def __init__(self, limit_bytes: int, read: Callable[[F], C]) -> None:
        self._limit_bytes = limit_bytes
        self._read = read
        self._known: OrderedDict[str, C] = OrderedDict()  # oldest use first
        self._users: Counter[str] = Counter()
        self._closed = False
        self._reader = low_priority_thread("sdbatch-read")
        self._holding = threading.Lock()
        self._changed = threading.Condition()

    def hold(self, files: Sequence[F]) -> list[C]:
        """The contents of an image's files, which stay until `give_back`.

        Waits while images in the engine hold so many others that there is no room. Raises
        `CheckpointError` for a file that cannot be used, `MemoryError` for one that is too large,
        and `EngineClosedError`.
        """
        held: list[F] = []
        # One image at a time: two that hold some of what they need would wait for each other.
        with self._holding:
            try:
                for file in files:
                    self._hold(file, held)
                    held.append(file)
            except BaseException:
                self.give_back(held)
                raise
        with self._changed:
            return [self._known[file.sha256] for file in files]

    def give_back(self, files: Sequence[F]) -> None:
        """Ends a `hold`."""
        with self._changed:
            self._users.subtract([file.sha256 for file in files])
            self._changed.notify_all()

    def close(self) -> None:
        """Ends every wait for room; no file is read from then on."""
        with self._changed:
            self._closed = True
            self._reader.shutdown(wait=False)
            self._changed.notify_all()

    @property
    def nbytes(self) -> int:
        """Bytes that all of them take on the device."""
        with self._changed:
            return sum(content.nbytes for content in self._known.values())

    def _hold(self, file: F, held: Sequence[F]) -> None:
        """held: what the image has already."""
        with self._changed:
            if file.sha256 in self._known:
                self._use(file)
                return
        content = self._look(file)
        with self._changed:
            self._make_room(file, content.nbytes, held)
            self._known[file.sha256] = content
            self._use(file)

    def _use(self, file: F) -> None:
        self._users[file.sha256] += 1
        self._known.move_to_end(file.sha256)

    def _look(self, file: F) -> C:
        try:
            size = file.file.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{file.file}: cannot be read: {error.strerror}") from None
        if size > 2 * self._limit_bytes:  # float32 here may be 16 bits there
            raise MemoryError(_too_large(file.file, size, self._limit_bytes))
        with self._changed:
            if self._closed:
                raise EngineClosedError("the engine is closed")
            reading = self._reader.submit(self._read, file)
        return reading.result()

    def _make_room(self, file: F, nbytes: int, held: Sequence[F]) -> None:
        """Drops contents that no image uses, those unused for longest first."""
        own = sum(self._known[name].nbytes for name in {one.sha256 for one in held})
        if own + nbytes > self._limit_bytes:
            raise MemoryError(_too_large(file.file, own + nbytes, self._limit_bytes))
        while sum(content.nbytes for content in self._known.values()) + nbytes > self._limit_bytes:
            unused = next((name for name in self._known if not self._users[name]), None)
            if unused is not None:
                del self._known[unused]
            elif self._closed:
                raise EngineClosedError("the engine is closed")
            else:
                self._changed.wait()


def _too_large(file: Path, nbytes: int, limit_bytes: int) -> str:
    return (
        f"{file}: with it an image's own weights take {nbytes / 2**20:,.0f} MiB; there is room for "
        f"{limit_bytes / 2**20:,.0f} MiB"
    )
