"""Reads torch's format from before 1.6 without torch's unpickler.

Pickles follow each other: a magic number, a version, facts about the machine, the content, and the
storages' keys in order. Then come the storages: for each the number of its elements in 8 bytes, and
these. Only the content says of what type a storage is, and only the keys where it lies, so the
content is read twice: once for the types, once with the places. For what that takes see
`pickle_machine`.
"""

from __future__ import annotations

from typing import Any

from sd_core.weights import pickle_machine
from sd_core.weights.pickle_machine import PickleError
from sd_core.weights.stored import MappedFile, is_count
from sd_core.weights.torch_pickle import (
    ALLOWED,
    Storage,
    StorageId,
    no_such_storage,
    read_dict,
    storage_id,
)

_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_VERSION = 1001
_LENGTH_BYTES = 8


def looks_like_torch_legacy(file: MappedFile) -> bool:
    """Says whether a file begins with the pickled magic number."""
    return file.map[: len(_MAGIC)] == _MAGIC


def read_torch_legacy(file: MappedFile) -> dict[Any, Any]:
    """The pickled dict, its tensors as `StoredTensor`s. Raises `CheckpointError`, as
    `read_torch_zip` does.
    """
    return read_dict(file, _Legacy(file).load)


class _Legacy:
    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.at = len(_MAGIC)
        self.named: dict[str, StorageId] = {}
        self.places: dict[str, int] = {}

    def load(self) -> Any:
        version, machine = self._pickle(), self._pickle()
        if version != _VERSION:
            raise PickleError(
                f"it is of torch's format before 1.6 in a version other than {_VERSION}"
            )
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise PickleError("it was saved on a big-endian machine; expected little-endian")
        content_at = self.at
        self._pickle(self._note)
        self._place(self._pickle())
        self.at = content_at
        return self._pickle(self._storage)

    def _pickle(self, persistent_load: Any = None) -> Any:
        """The value of the next pickle in the file."""
        data = self.file.map[self.at : self.at + pickle_machine.MAX_PICKLE_BYTES]
        value, size = pickle_machine.load_first(data, ALLOWED, persistent_load or _no_storages)
        self.at += size
        return value

    def _note(self, identity: Any) -> Storage:
        """Keeps what a persistent id says of a storage. Its place is not known yet."""
        said = storage_id(identity)
        if self.named.setdefault(said.key, said) != said:
            raise PickleError(f"its pickle describes the storage {said.key:.100} in two ways")
        return Storage(self.file, 0, said.numel, said.dtype)

    def _place(self, keys: Any) -> None:
        """Finds where each storage lies, by going along them."""
        at = self.at
        for key in keys if isinstance(keys, list) else ():
            said = self.named.get(key) if isinstance(key, str) else None
            if said is None:
                raise no_such_storage(key)
            self.places[said.key] = at + _LENGTH_BYTES
            end = at + _LENGTH_BYTES + said.numel * said.dtype.itemsize
            if end > self.file.size:
                raise PickleError(
                    f"the file is cut short: it has {self.file.size} of at least {end} bytes; "
                    "download it again"
                )
            numel = int.from_bytes(self.file.map[at : at + _LENGTH_BYTES], "little")
            if numel != said.numel:
                raise PickleError(
                    f"its storage {said.key:.100} has {numel} elements, expected {said.numel}"
                )
            at = end

    def _storage(self, identity: Any) -> Storage:
        said = storage_id(identity)
        place = self.places.get(said.key)
        if place is None:
            raise no_such_storage(said.key)
        return _viewed(Storage(self.file, place, said.numel, said.dtype), identity)


def _viewed(storage: Storage, identity: Any) -> Storage:
    """The part of a storage that a persistent id means: (key, first element, elements) at its end,
    where it is not the whole.
    """
    view = identity[5] if len(identity) > 5 else None
    if view is None:
        return storage
    sound = isinstance(view, tuple) and len(view) == 3 and is_count(view[1]) and is_count(view[2])
    if not sound or view[1] + view[2] > storage.numel:
        raise PickleError("its pickle describes a part of a storage wrongly")
    offset = storage.offset + view[1] * storage.dtype.itemsize
    return storage._replace(offset=offset, numel=view[2])


def _no_storages(identity: Any) -> Any:
    raise no_such_storage(identity)
