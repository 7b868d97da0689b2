"""A stand-in for a CUDA device on any machine: tensors that say they are there, and counts.

Its tensors hold ordinary ones. Every operation on them runs on those, so numbers are the CPU's. It
behaves as CUDA does where that matters to the host:

    waits     operations for which the host waits for the device, by name: reading a number, copies
              from and to memory that is not pinned
    mixing    an operation on tensors of both sides raises
    capture   nothing is executed while a graph is captured, which fails where the host would wait;
              its replay runs the same operations on the same memory
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.models.clip.modeling_clip  # noqa: F401  # reads torch.cuda as it is imported
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique2"}


class Far(torch.Tensor):
    """A tensor on the stand-in. near: what it holds."""

    near: Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        # For the C++ side it is on no device, which needs no driver.
        return torch.Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=torch.device("meta"),
        )

    def __init__(self, near: Tensor) -> None:
        self.near = near

    def __repr__(self) -> str:
        return f"Far({self.near!r})"

    def record_stream(self, stream: Stream) -> None:  # type: ignore[override]
        self.near.streams = [*getattr(self.near, "streams", []), stream]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a tensor of the stand-in, which is not in use here")


def near(value: Any) -> Any:
    return value.near if isinstance(value, Far) else value


def far(value: Any) -> Any:
    return Far(value) if isinstance(value, Tensor) and not isinstance(value, Far) else value


class Recording:
    """The operations of a captured graph, with the memory that they had."""

    def __init__(self) -> None:
        self._calls: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs it, as later ones need its result's shape; `end` undoes what it writes."""
        for tensor in written(func, args, kwargs):
            if id(tensor) not in self._before:
                self._before[id(tensor)] = tensor, tensor.clone()
        out = func(*args, **kwargs)
        self._calls.append((func, args, kwargs, out))
        return out

    def end(self) -> None:
        for tensor, before in reversed(list(self._before.values())):
            tensor.copy_(before)
        self._before.clear()

    def replay(self) -> None:
        for func, args, kwargs, out in self._calls:
            again = func(*args, **kwargs)
            if written(func, args, kwargs):
                continue
            inputs = {memory(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and memory(old) not in inputs:  # no view
                    old.copy_(new)


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Tensors that an operation changes."""
    found = []
    for place, argument in enumerate(func._schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += [t for t in tree_leaves(value) if isinstance(t, Tensor)]
    return found


class StandIn(TorchDispatchMode):
    """waits: since it was last cleared. launches: what the host queued, by name. capture_error:
    raised where something is captured. replays: of graphs. card: its properties.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.launches: list[str] = []
        self.capturing: Recording | None = None
        self.capture_error: Exception | None = None
        self.replays = 0
        self.card = SimpleNamespace(name="Stand-in", major=9, minor=0, multi_processor_count=132)
        self._pinned: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.partition("::")[2]
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        ours = [t for t in tensors if isinstance(t, Far)]
        to = kwargs.get("device")
        # What C++ makes beside one of ours is where it believes that one to be.
        goes_far = to is not None and torch.device(to).type in ("cuda", "meta")
        if name == "is_pinned":
            return memory(args[0]) in self._pinned
        if name == "_pin_memory" or kwargs.pop("pin_memory", False):
            out = args[0].clone() if name == "_pin_memory" else func(*args, **kwargs)
            self._pinned.add(memory(out))
            return out
        if goes_far:
            kwargs["device"] = torch.device("cpu")
        if name in ("_to_copy", "copy_") and (goes_far or ours):
            self._note_copy(name, args, kwargs, to)
        elif name in WAITS and ours:
            self._wait(name)
        elif ours and any(t.dim() and not isinstance(t, Far) for t in tensors):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device")
        plain_args, plain_kwargs = tree_map(near, args), tree_map(near, kwargs)
        if not (ours or goes_far):
            return func(*args, **kwargs)
        self.launches.append(name)
        if self.capturing is not None:
            if self.capture_error is not None:
                raise self.capture_error
            out = self.capturing.run(func, plain_args, plain_kwargs)
        else:
            out = func(*plain_args, **plain_kwargs)
        leaves_far = name == "_to_copy" and to is not None and not goes_far
        if leaves_far or (name == "copy_" and not isinstance(args[0], Far)):
            return out
        # In place and with `out`, the tensor itself comes back.
        same = {id(t.near): t for t in ours}
        return tree_map(lambda t: same.get(id(t), far(t)), out)

    def _note_copy(self, name: str, args: Any, kwargs: Any, to: Any) -> None:
        if name == "copy_":
            target, source, *rest = args
            queued = kwargs.get("non_blocking", rest[0] if rest else False)
            sides = isinstance(target, Far), isinstance(source, Far)
        else:
            target, source = None, args[0]
            queued = kwargs.get("non_blocking", False)
            there = isinstance(source, Far)
            sides = there if to is None else torch.device(to).type in ("cuda", "meta"), there
        if sides[0] == sides[1]:
            return
        host = source if sides[0] else target
        if not queued or host is None or memory(host) not in self._pinned:
            self._wait(f"{name} {'to' if sides[0] else 'from'} the device")

    def _wait(self, what: str) -> None:
        if self.capturing is not None:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        self.waits.append(what)


@contextlib.contextmanager
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in in use on this thread, and in the place of `torch.cuda`."""
    device = StandIn()
    stream = Stream(device)
    for name, value in {
        "_lazy_init": lambda: None,
        "set_device": lambda index: device.launches.append(f"set_device {index}"),
        "current_stream": lambda _=None: stream,
        "Stream": lambda _=None: Stream(device),
        "stream": lambda _: contextlib.nullcontext(),
        "Event": lambda enable_timing=False: Event(device, timed=enable_timing),
        "CUDAGraph": lambda: Graph(device),
        "graph": lambda graph, **options: captured(device, graph, options),
        "graph_pool_handle": lambda: (0, 1),
        "get_device_properties": lambda _=None: device.card,
        "mem_get_info": lambda _=None: (60 * 2**30, 80 * 2**30),
        "memory_reserved": lambda _=None: 2**30,
        "empty_cache": lambda: device.launches.append("empty_cache"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    # Views of tensors such as ours are not possible in inference mode.
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)
    with device:
        yield device


class Stream:
    def __init__(self, device: StandIn) -> None:
        self._device = device

    def wait_stream(self, other: Stream) -> None:
        self._device.launches.append("wait_stream")

    def wait_event(self, event: Event) -> None:
        self._device.launches.append("wait_event")

    def synchronize(self) -> None:
        self._device._wait("synchronize")


class Event:
    """Reached as soon as it is waited for, a clock's tick after the one recorded before."""

    clock = 0.0

    def __init__(self, device: StandIn, *, timed: bool) -> None:
        self._device, self._timed = device, timed
        self._at: float | None = None

    def record(self, stream: Stream | None = None) -> None:
        Event.clock += 1.0
        self._at = Event.clock

    def synchronize(self) -> None:
        assert self._at is not None
        self._device.launches.append("event.synchronize")

    def query(self) -> bool:
        return self._at is not None

    def elapsed_time(self, other: Event) -> float:
        assert self._timed
        assert other._timed
        return other._at - self._at


class Graph:
    def __init__(self, device: StandIn) -> None:
        self.device, self.recording = device, Recording()

    def replay(self) -> None:
        self.device.replays += 1
        self.device.launches.append("replay")
        with torch.utils._python_dispatch._disable_current_modes():
            self.recording.replay()


@contextlib.contextmanager
def captured(device: StandIn, graph: Graph, options: dict[str, Any]) -> Iterator[None]:
    assert options["capture_error_mode"] == "thread_local"
    gc.collect()
    device.capturing = graph.recording
    try:
        yield
    finally:
        device.capturing = None
        with torch.utils._python_dispatch._disable_current_modes():
            graph.recording.end()


def move(model: nn.Module) -> None:
    """Its weights to the stand-in, in place."""
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                module._parameters[name] = nn.Parameter(Far(weight.data), requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = Far(buffer)
