"""Reads torch's zip format (`torch.save` since 1.6) without torch's unpickler.

The archive holds one pickle, `data.pkl`, and each storage's bytes in a member of its own, stored
without compression. So a tensor is a place in the file, and nothing but the pickle is read here.
"""

from __future__ import annotations

import math
import zipfile
from typing import Any, NamedTuple

import torch

from sd_core.weights import pickle_machine
from sd_core.weights.errors import CheckpointError
from sd_core.weights.pickle_machine import GlobalTable, Inert, PickleError
from sd_core.weights.stored import MappedFile, Shape, StoredTensor

MAX_DIMENSIONS = 8
_LOCAL_HEADER_BYTES = 30

_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


class Storage(NamedTuple):
    """Elements of one type in a file. offset: bytes."""

    file: MappedFile
    offset: int
    numel: int
    dtype: torch.dtype


def looks_like_torch_zip(file: MappedFile) -> bool:
    return file.map[:4] == b"PK\x03\x04"


def read_torch_zip(file: MappedFile) -> dict[Any, Any]:
    """The pickled dict, its tensors as `StoredTensor`s.

    Raises `CheckpointError`, among others where the pickle asks for a global that is not in
    `ALLOWED`; it is named, and nothing is run.
    """
    try:
        content = _Archive(file).load()
    except PickleError as error:
        raise CheckpointError(f"{file.path}: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file.path}: it holds a {type(content).__name__}; expected a dict of weights"
        )
    return content


class _Archive:
    def __init__(self, file: MappedFile) -> None:
        self.file = file
        try:
            with zipfile.ZipFile(file.path) as archive:
                self.members = {info.filename: info for info in archive.infolist()}
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
            raise CheckpointError(
                f"{file.path}: the file is cut short or damaged: it begins as a zip archive "
                "without its end; download it again"
            ) from None
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
            raise PickleError(f"its {info.filename} has {size} bytes, too many")
        return self.file.map[start : start + size]

    def _place(self, info: zipfile.ZipInfo) -> tuple[int, int]:
        """(offset, size) in bytes of a member's content in the file."""
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise PickleError(f"its {info.filename} is compressed or encrypted; expected neither")
        header = self.file.map[info.header_offset : info.header_offset + _LOCAL_HEADER_BYTES]
        if len(header) != _LOCAL_HEADER_BYTES or header[:4] != b"PK\x03\x04":
            raise PickleError(f"its {info.filename} is not where the archive says")
        # The local header's name and padding may differ in length from the directory's.
        name, padding = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        start = info.header_offset + _LOCAL_HEADER_BYTES + name + padding
        if start + info.file_size > self.file.size:
            raise PickleError(f"its {info.filename} ends behind the file's end: it is cut short")
        return start, info.file_size

    def _storage(self, identity: Any) -> Storage:
        """A persistent id: ("storage", type, key, device, number of elements)."""
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise PickleError("its pickle refers to something other than a tensor's storage")
        kind, key, numel = identity[1], identity[2], identity[4]
        dtype = _STORAGES.get(getattr(kind, "name", ""))
        member = self.members.get(f"{self.folder}data/{key}") if isinstance(key, str) else None
        if dtype is None or member is None or not _is_count(numel):
            raise PickleError(f"its pickle refers to a storage that is not there: {key!r:.100}")
        start, size = self._place(member)
        if numel * dtype.itemsize > size:
            raise PickleError(f"its storage {key} has {size} bytes, too few for {numel} {dtype}")
        return Storage(self.file, start, numel, dtype)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    """What `torch._utils._rebuild_tensor_v2` says of a tensor: where it lies in its storage."""
    sound = (
        isinstance(storage, Storage)
        and isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and len(shape) == len(strides) <= MAX_DIMENSIONS
        and all(_is_count(n) for n in (offset, *shape, *strides))
    )
    if not sound:
        raise PickleError("its pickle describes a tensor wrongly")
    reach = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
    if math.prod(shape) > 0 and reach > storage.numel:
        raise PickleError(
            f"its pickle describes a tensor of {reach} elements in a storage of {storage.numel}"
        )
    return StoredTensor(
        storage.file,
        storage.offset + offset * storage.dtype.itemsize,
        shape,
        storage.dtype,
        None if strides == _contiguous(shape) else strides,
    )


def _contiguous(shape: Shape) -> Shape:
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(strides[::-1])


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _ordered_dict(*pairs: Any) -> dict[Any, Any]:
    if pairs:  # torch fills it afterwards, where keys are checked
        raise PickleError("its pickle makes an OrderedDict of arguments, which no weights need")
    return {}


def _not_needed(*_: Any) -> Inert:
    return Inert()


ALLOWED: GlobalTable = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    **dict.fromkeys(_STORAGES),
    # Training state: Lightning keys its callbacks by their class, and keeps numpy scalars.
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint": None,
    "numpy.core.multiarray.scalar": _not_needed,
    "numpy._core.multiarray.scalar": _not_needed,
    "numpy.dtype": _not_needed,
    "_codecs.encode": _not_needed,
}
"""Every global that a pickle may name, and what stands for it. The real one is never looked up."""
