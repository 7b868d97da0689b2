"""Reads torch's zip format (`torch.save` since 1.6) without torch's unpickler.

The archive holds one pickle, `data.pkl`, and each storage's bytes in a member of its own, stored
without compression. So a tensor is a place in the file, and nothing but the directory and the
pickle is read here. Within its limit the directory takes at most 100 MB of memory; for the pickle
see `pickle_machine`.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any

from sd_core.weights import pickle_machine
from sd_core.weights.errors import CheckpointError, named
from sd_core.weights.pickle_machine import PickleError
from sd_core.weights.stored import MappedFile
from sd_core.weights.torch_pickle import ALLOWED, Storage, no_such_storage, read_dict, storage_id

MAX_DIRECTORY_BYTES = 4 * 2**20
"""A v1 checkpoint with all its training state has some 4,000 members, of about 100 bytes each."""

_LOCAL_HEADER_BYTES = 30


def looks_like_torch_zip(file: MappedFile) -> bool:
    return file.map[:4] == b"PK\x03\x04"


def read_torch_zip(file: MappedFile) -> dict[Any, Any]:
    """The pickled dict, its tensors as `StoredTensor`s.

    Raises `CheckpointError`, among others where the pickle asks for a global that is not in
    `ALLOWED`; it is named, and nothing is run.
    """
    return read_dict(file, lambda: _Archive(file).load())


class _Archive:
    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.members = _members(file)
        pickles = [name for name in self.members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(
                f"{file.path}: a zip archive, but none that torch saved: it has {len(pickles)} "
                "members data.pkl; expected one"
            )
        self.pickle = pickles[0]
        self.folder = self.pickle.removesuffix("data.pkl")

    def load(self) -> Any:
        order = self.members.get(self.folder + "byteorder")
        if order is not None and self._read(order) != b"little":
            raise PickleError("it was saved on a big-endian machine; expected little-endian")
        data = self._read(self.members[self.pickle])
        return pickle_machine.load(data, ALLOWED, self._storage)

    def _read(self, info: zipfile.ZipInfo) -> bytes:
        start, size = self._place(info)
        if size > pickle_machine.MAX_PICKLE_BYTES:
            raise PickleError(f"its {named(info.filename)} has {size} bytes, too many")
        return self.file.map[start : start + size]

    def _place(self, info: zipfile.ZipInfo) -> tuple[int, int]:
        """(offset, size) in bytes of a member's content in the file."""
        name = named(info.filename)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise PickleError(f"its {name} is compressed or encrypted; expected neither")
        at = max(info.header_offset, 0)  # below 0 in a damaged directory
        header = self.file.map[at : at + _LOCAL_HEADER_BYTES]
        if at != info.header_offset or not header.startswith(b"PK\x03\x04"):
            raise PickleError(f"its {name} is not where the archive says")
        # The local header's name and padding may differ in length from the directory's. Of a header
        # that the file's end cuts off, the content begins behind that.
        padding = sum(int.from_bytes(header[n : n + 2], "little") for n in (26, 28))
        start = at + _LOCAL_HEADER_BYTES + padding
        if start + info.file_size > self.file.size:
            raise PickleError(f"its {name} ends behind the file's end: it is cut short")
        return start, info.file_size

    def _storage(self, identity: Any) -> Storage:
        dtype, key, numel = storage_id(identity)
        member = self.members.get(f"{self.folder}data/{key}")
        if member is None:
            raise no_such_storage(key)
        start, size = self._place(member)
        if numel * dtype.itemsize > size:
            raise PickleError(f"its storage {key} has {size} bytes, too few for {numel} {dtype}")
        return Storage(self.file, start, numel, dtype)


def _members(file: MappedFile) -> dict[str, zipfile.ZipInfo]:
    """The archive's members by name. Raises `CheckpointError`."""
    try:
        with _BoundedFile(file.path) as bounded, zipfile.ZipFile(bounded) as archive:
            infos = archive.infolist()
    except _TooLongError:
        raise CheckpointError(
            f"{file.path}: a zip archive whose directory has more than {MAX_DIRECTORY_BYTES} "
            "bytes, which no checkpoint needs"
        ) from None
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        raise CheckpointError(
            f"{file.path}: the file is cut short or damaged: it begins as a zip archive "
            "without its end; download it again"
        ) from None
    members = {info.filename: info for info in infos}
    if len(members) < len(infos):
        raise CheckpointError(f"{file.path}: a zip archive with two members of one name")
    return members


class _TooLongError(Exception):
    """More was asked for at once than a directory may have."""


class _BoundedFile(io.FileIO):
    """A file for `zipfile`, which reads a directory of any size in one go and into objects."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise _TooLongError
        return super().read(size)
