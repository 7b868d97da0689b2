"""oneDNN's own tensors as plain bytes, and back: torch itself can neither save nor map them."""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Size = tuple[int, ...]

_BLOB = "aoti_torch_create_tensor_from_blob_v2"


@cache
def _library() -> ctypes.CDLL | None:
    """torch's C interface for compiled programs, which takes a tensor's memory as it is. None where
    this torch has no such, or not all of it.
    """
    path = Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"
    steal = getattr(
        getattr(torch._C, "_aoti", None), "alloc_tensor_by_stealing_from_void_ptr", None
    )
    describe = getattr(torch.ops.mkldnn, "_get_mkldnn_serialized_md", None)
    if not path.exists() or steal is None or describe is None:
        return None
    library = ctypes.CDLL(str(path))
    if not hasattr(library, _BLOB):
        return None
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    getattr(library, _BLOB).argtypes = [
        *(pointer, number, pointer, pointer, number),  # memory, dimensions, sizes, strides, offset
        *(ctypes.c_int32, ctypes.c_int32, ctypes.c_int32),  # type, device and its index
        *(pointer, ctypes.c_int32, pointer, number),  # result, layout, description and its length
    ]
    return library


@cache
def can_rebuild() -> bool:
    """True where `rebuilt` gives a tensor back as it was, which is tried on a small one."""
    if _library() is None:
        return False
    try:
        shape = 32, 16
        weight = torch.ops.mkldnn._reorder_linear_weight(torch.arange(512.0).view(shape), 4)
        again = rebuilt(content(weight).clone(), description(weight), shape, torch.float32)
        return torch.equal(again.to_dense(), weight.to_dense())
    # Whatever a changed operator raises, weights are then laid out at every start.
    except Exception as error:
        log.info("oneDNN's tensors cannot be kept with torch %s: %s", torch.__version__, error)
        return False


def content(weight: Tensor) -> Tensor:
    """The bytes of one of oneDNN's tensors, (n,) uint8, in its own memory."""
    nbytes = torch.ops.mkldnn._nbytes(weight)
    memory = (ctypes.c_uint8 * nbytes).from_address(torch.ops.mkldnn.data_ptr(weight))
    memory.weight = weight  # it must live as long
    return torch.frombuffer(memory, dtype=torch.uint8)


def description(weight: Tensor) -> Tensor:
    """Bytes with which oneDNN describes the layout, (n,) uint8."""
    return torch.ops.mkldnn._get_mkldnn_serialized_md(weight)


def rebuilt(content: Tensor, description: Tensor, shape: Size, dtype: torch.dtype) -> Tensor:
    """The tensor whose bytes and description these are, without a copy.

    Both may only come from `content` and `description`, for oneDNN reads whatever they say.
    Raises `RuntimeError` where torch refuses.
    """
    library = _library()
    if library is None:
        raise RuntimeError("this torch cannot take oneDNN's tensors as they are")
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    strides = (ctypes.c_int64 * len(shape))(*torch.empty(shape, device="meta").stride())
    handle = ctypes.c_void_p()
    refused = getattr(library, _BLOB)(
        *(content.data_ptr(), len(shape), sizes, strides, 0),
        getattr(library, f"aoti_torch_dtype_{str(dtype).removeprefix('torch.')}")(),
        *(library.aoti_torch_device_type_cpu(), 0, ctypes.byref(handle)),
        *(library.aoti_torch_layout__mkldnn(), description.data_ptr(), len(description)),
    )
    if refused:
        raise RuntimeError(f"torch does not take a tensor of {shape}, {dtype}, from its bytes")
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p] * 3
    tensor: Tensor = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(
        capsule(handle, None, None)
    )
    tensor.memory = content  # type: ignore[attr-defined]  # which the tensor does not own
    return tensor
