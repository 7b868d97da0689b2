"""Tensors between the CPU and the device, without waiting for the device.

From and to a GPU, copies go by pinned memory and are queued like kernels: the host goes on at once.
On a CPU there is nothing to copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

AHEAD = 2
"""Evaluations that the host may queue before the device has ended the first of them."""


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; itself, where it is there already."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        # torch keeps the pinned copy until the device has read it.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Upload:
    """A tensor on the device whose values the host writes for each evaluation.

    tensor: where kernels read it; zeros at first, its address never changes.
    """

    def __init__(
        self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.tensor = torch.zeros(shape, dtype=dtype, device=device)
        self._host = [self.tensor]
        if device.type == "cuda":
            # The device may still read what was written for each evaluation that is queued.
            self._host = [
                torch.zeros(shape, dtype=dtype, pin_memory=True) for _ in range(AHEAD + 1)
            ]
        self._turn = 0

    @property
    def host(self) -> Tensor:
        """The tensor to write to before `send`, on the CPU, which holds what it held some sends
        ago: write all of it that is read.
        """
        return self._host[self._turn]

    def send(self) -> None:
        """Queues the copy of `host` to `tensor`."""
        host = self.host
        if host is not self.tensor:
            self.tensor.copy_(host, non_blocking=True)
            self._turn = (self._turn + 1) % len(self._host)


class CopyOut:
    """Tensors on their way to the CPU. From a GPU they are copied into pinned memory, on a stream
    of their own: its kernels go on meanwhile. What is on the CPU is there already.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._tensors = tensors
        device = tensors[0].device
        if device.type == "cuda":
            beside = torch.cuda.Stream(device)
            beside.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(beside):
                self._tensors = tuple(
                    torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
                    for t in tensors
                )
            for tensor in tensors:
                tensor.record_stream(beside)  # may not be freed for others while it is read
            self._event = torch.cuda.Event()
            self._event.record(beside)

    @property
    def ready(self) -> bool:
        return self._event is None or self._event.query()

    def result(self) -> tuple[Tensor, ...]:
        """The tensors on the CPU; waits for them."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensors
