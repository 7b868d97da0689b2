"""Tensors that stay in their file until they are needed.

Files are mapped, not read, so a checkpoint's size in memory is that of the one tensor in hand.
Tensors are always copied out of the map: a model that pointed into it would change, or crash, when
the file is replaced or cut under a running worker. Only while it loads must a file stay as it is.
"""

from __future__ import annotations

import math
import mmap
import stat
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sd_core.weights.errors import CheckpointError

Shape = tuple[int, ...]

MAX_DIMENSIONS = 8
"""Most dimensions of a tensor. A model's have 4."""


def is_count(value: object) -> bool:
    """Says whether a value from a file may be a length or a place: a whole number below 2^63."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


class MappedFile:
    """A file's bytes, mapped copy-on-write (nothing writes; torch only dislikes read-only maps).

    Raises `CheckpointError` where the path is missing, no file, empty or not readable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe would be waited for
                raise CheckpointError(f"{path}: not a regular file; expected model weights")
            with path.open("rb") as file:
                self.size = file.seek(0, 2)
                if self.size == 0:
                    raise CheckpointError(f"{path}: the file is empty; expected model weights")
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file; expected model weights") from None
        except IsADirectoryError:
            raise CheckpointError(f"{path}: a folder; expected a file of weights") from None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None

    def release(self, start: int, length: int) -> None:
        """Gives the pages of a byte range back, so that they no longer count as this process's."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = start - start % mmap.PAGESIZE
        self.map.madvise(mmap.MADV_DONTNEED, first, start + length - first)


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file. offset: bytes; strides: elements, None where contiguous."""

    file: MappedFile
    offset: int
    shape: Shape
    dtype: torch.dtype
    strides: Shape | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def span_bytes(self) -> int:
        """Bytes from the first to the last element."""
        if self.numel == 0:
            return 0
        if self.strides is None:
            return self.numel * self.dtype.itemsize
        reach = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        return (reach + 1) * self.dtype.itemsize

    def reshaped(self, shape: Shape) -> StoredTensor:
        """The same elements in another shape; only for contiguous tensors of as many elements."""
        return replace(self, shape=shape)

    def view(self) -> Tensor:
        """The tensor as it lies in the map, contiguous. Copy it before the map is released.

        Raises `CheckpointError` where strides repeat elements until it is larger than the file.
        """
        if self.numel == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        if self.numel * self.dtype.itemsize > self.file.size:
            raise CheckpointError(f"{self.file.path}: a tensor of {self.numel} elements is in it")
        flat = torch.frombuffer(
            self.file.map,
            dtype=self.dtype,
            count=self.span_bytes // self.dtype.itemsize,
            offset=self.offset,
        )
        if self.strides is None:
            return flat.view(self.shape)
        return flat.as_strided(self.shape, self.strides).contiguous()

    def copy_into(self, out: Tensor, scratch: Tensor) -> None:
        """Copies the elements into a tensor of this shape, converted to its type and moved to its
        device, and gives their pages back. scratch: some float32 memory on the CPU.
        """
        _copy(self.view(), out, scratch)
        self.release()

    def release(self) -> None:
        """Gives the tensor's pages back; whatever `view` returned must not be used after."""
        self.file.release(self.offset, self.span_bytes)


def _copy(source: Tensor, out: Tensor, scratch: Tensor) -> None:
    if {source.dtype, out.dtype} != {torch.float16, torch.bfloat16} or out.device.type != "cpu":
        out.copy_(source)
        return
    # torch converts these two into each other one by one; by float32, which holds both, it takes a
    # third of the time and gives the same bits.
    size = len(scratch)
    for chunk, into in zip(source.view(-1).split(size), out.view(-1).split(size), strict=True):
        into.copy_(scratch[: len(chunk)].copy_(chunk))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy."""
    array: np.ndarray = tensor.reshape(-1).view(torch.uint8).numpy()
    return array.data
