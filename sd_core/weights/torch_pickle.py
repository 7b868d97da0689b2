"""Stands for what torch's pickles name: storages, tensors in them, training state around them.

Both of torch's formats pickle a tensor as a call that says where it lies in a storage, and a
storage as a persistent id. No function of torch's is called; the table below says what stands for
each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from sd_core.weights.errors import CheckpointError, shown
from sd_core.weights.pickle_machine import Global, GlobalTable, Inert, PickleError
from sd_core.weights.stored import MAX_DIMENSIONS, MappedFile, Shape, StoredTensor, is_count

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


def read_dict(file: MappedFile, load: Callable[[], Any]) -> dict[Any, Any]:
    """The dict that `load` unpickles from the file. Raises `CheckpointError`, with the file's path
    where `load` raises `PickleError`.
    """
    try:
        content = load()
    except PickleError as error:
        raise CheckpointError(f"{file.path}: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file.path}: it holds a {type(content).__name__}; expected a dict of weights"
        )
    return content


class Storage(NamedTuple):
    """Elements of one type in a file. offset: bytes."""

    file: MappedFile
    offset: int
    numel: int
    dtype: torch.dtype


class StorageId(NamedTuple):
    """A storage as a pickle describes it. key: its name in the file. numel: elements."""

    dtype: torch.dtype
    key: str
    numel: int


def storage_id(identity: Any) -> StorageId:
    """Reads a persistent id: ("storage", type, key, device, number of elements).

    Raises `PickleError` for anything else.
    """
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        raise PickleError("its pickle refers to something other than a tensor's storage")
    kind, key, numel = identity[1], identity[2], identity[4]
    dtype = _STORAGES.get(kind.name) if isinstance(kind, Global) else None
    if dtype is None or not isinstance(key, str) or not is_count(numel):
        raise no_such_storage(key)
    return StorageId(dtype, key, numel)


def no_such_storage(key: Any) -> PickleError:
    return PickleError(f"its pickle refers to a storage that is not there: {shown(key)}")


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    """Places a tensor in its storage, as `torch._utils._rebuild_tensor_v2` is told to."""
    sound = (
        isinstance(storage, Storage)
        and isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and len(shape) == len(strides) <= MAX_DIMENSIONS
        and all(is_count(n) for n in (offset, *shape, *strides))
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


def _rebuild_from_type(function: Any, _kind: Any, arguments: Any, _state: Any) -> Any:
    """A tensor with attributes, which are not needed: `function` of `arguments` is the tensor."""
    rebuild = _TENSORS.get(function.name) if isinstance(function, Global) else None
    if rebuild is None or not isinstance(arguments, tuple):
        raise PickleError("its pickle describes a tensor wrongly")
    return rebuild(*arguments)


def _ordered_dict(*pairs: Any) -> dict[Any, Any]:
    if pairs:  # torch fills it afterwards, where keys are checked
        raise PickleError("its pickle makes an OrderedDict of arguments, which no weights need")
    return {}


def _not_needed(*_: Any) -> Inert:
    return Inert()


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}

_PLAIN = ("list", "dict", "int", "float", "str", "bool")

ALLOWED: GlobalTable = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    **dict.fromkeys(("torch.Tensor", "torch.nn.parameter.Parameter")),
    **dict.fromkeys(_STORAGES),
    "collections.OrderedDict": _ordered_dict,
    # What trainers and mergers keep beside weights. Lightning keys its callbacks by their class.
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint": None,
    "collections.defaultdict": lambda *_: {},
    **dict.fromkeys(
        f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _PLAIN
    ),
    **dict.fromkeys(("builtins.set", "builtins.frozenset"), _not_needed),
    **dict.fromkeys(("__builtin__.set", "__builtin__.frozenset"), _not_needed),
    **dict.fromkeys(("torch.Size", "torch.device"), _not_needed),
    **dict.fromkeys(str(dtype) for dtype in _STORAGES.values()),
    # numpy's scalars, arrays and types; `core` before numpy 2, `_core` since.
    **dict.fromkeys(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), _not_needed),
    "numpy.core.multiarray._reconstruct": _not_needed,
    "numpy._core.multiarray._reconstruct": _not_needed,
    "numpy.core.numeric._frombuffer": _not_needed,
    "numpy._core.numeric._frombuffer": _not_needed,
    "numpy.ndarray": None,
    "numpy.dtype": _not_needed,
    "_codecs.encode": _not_needed,
}
"""Every global that a pickle may name, and what stands for it. The real one is never looked up."""
