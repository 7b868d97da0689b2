"""A store over another one: reads what is there, and keeps what is written in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.storage import ObjectInfo, Store
from jobs.storage.base import MAX_OBJECT_BYTES


class ScratchStore:
    """Keeps what is rendered until it is compared, which takes it out again (`take`).

    Nothing is read back of what was written, and nothing deleted.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def take(self, key: str) -> bytes:
        """An object that was written, which is kept no longer. Raises `KeyError`."""
        with self._lock:
            return self._written.pop(key)

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> bool:
        with self._lock:
            self._written[key] = data
        return True

    def copy(self, source: str, key: str) -> bool:
        return self.put(key, self.get(source))

    def put_file(self, key: str, path: Path) -> None:
        self.put(key, path.read_bytes())

    def sha256(self, key: str) -> str | None:
        return self._store.sha256(key)

    def get(self, key: str, *, limit_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        return self._store.get(key, limit_bytes=limit_bytes)

    def head(self, key: str) -> ObjectInfo | None:
        return self._store.head(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._store.list(prefix)

    def folders(self, prefix: str, limit: int) -> Sequence[str]:
        return self._store.folders(prefix, limit)

    def delete(self, key: str) -> None:
        """Does nothing: the object is the other store's."""

    def url(self, key: str) -> str:
        return self._store.url(key)

    def check_writable(self) -> None:
        """It is."""
