"""A pickle reader that cannot run anything.

Python's unpicklers, torch's restricted one included, resolve globals and call what they find. This
one is a small machine of its own over `pickletools.genops`: it knows the opcodes that checkpoints
need, builds nothing but plain values, and looks globals up in the table it is given. Nothing is
ever imported, and sizes in the pickle allocate nothing by themselves.

Reading takes time and memory in proportion to the pickle: about a microsecond and at most 200 bytes
an instruction, and its argument, whose characters take up to 4 bytes each. So within the two limits
below no pickle takes more than 350 MB, or a few seconds.
"""

from __future__ import annotations

import io
import pickletools
import sys
from collections.abc import Callable, Mapping
from typing import Any

from sd_core.weights.errors import named, shown

MAX_PICKLE_BYTES = 32 * 2**20
"""A v1 checkpoint's structure takes about a megabyte; its tensors lie outside the pickle."""

MAX_INSTRUCTIONS = 1_000_000
"""A v1 checkpoint with running averages and the optimizer's state takes about 100,000."""

# What may key a dict: values whose hash is cheap. Nested tuples that share parts have hashes of
# exponential cost.
_KEY_TYPES = (str, int, float, bool, bytes, type(None))

# Integers below Python's modulus have hashes of their own. Larger ones can be chosen to share one,
# and a dict of n such keys takes n^2 comparisons.
_KEY_LIMIT = sys.hash_info.modulus


class PickleError(Exception):
    """The pickle is damaged, or asks for something that is not allowed."""


class Global:
    """A global by name, not resolved. call: what calling it gives here; None forbids calls."""

    def __init__(self, name: str, call: Callable[..., Any] | None) -> None:
        self.name = name
        self.call = call


class Inert:
    """Stands for a value that is not needed, such as a numpy scalar in the training state."""


GlobalTable = Mapping[str, Callable[..., Any] | None]
"""`module.name` of every allowed global -> what calling it with its arguments gives."""


def load(data: bytes, allowed: GlobalTable, persistent_load: Callable[[Any], Any]) -> Any:
    """The pickled value, with allowed globals called by `allowed` alone.

    persistent_load: gives the value of a persistent id (a torch storage).
    Raises `PickleError`; a global that is not allowed is named in it.
    """
    return load_first(data, allowed, persistent_load)[0]


def load_first(
    data: bytes, allowed: GlobalTable, persistent_load: Callable[[Any], Any]
) -> tuple[Any, int]:
    """(the value of the pickle that data begins with, bytes of that pickle). See `load`."""
    if len(data) > MAX_PICKLE_BYTES:
        raise PickleError(f"its pickle has {len(data)} bytes, more than {MAX_PICKLE_BYTES}")
    machine = _Machine(allowed, persistent_load)
    try:
        for count, (opcode, argument, place) in enumerate(pickletools.genops(io.BytesIO(data))):
            if opcode.name == "STOP":
                return machine.pop(), (place or 0) + 1
            if count >= MAX_INSTRUCTIONS:
                raise PickleError(f"its pickle has more than {MAX_INSTRUCTIONS} instructions")
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError) as error:
        raise PickleError(f"its pickle is damaged ({named(str(error))})") from None
    raise PickleError("its pickle has no end")


_MARK = object()
_PUSH_ARGUMENT = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_PUSH_CONSTANT: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
    "MARK": lambda: _MARK,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    def __init__(self, allowed: GlobalTable, persistent_load: Callable[[Any], Any]) -> None:
        self.allowed = allowed
        self.persistent_load = persistent_load
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise PickleError("its pickle is damaged (a mark without its end)")
        return value

    def pop_to_mark(self) -> list[Any]:
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def step(self, opcode: str, argument: Any) -> None:
        push = self.stack.append
        if opcode in _PUSH_ARGUMENT:
            push(argument)
        elif opcode in _PUSH_CONSTANT:
            push(_PUSH_CONSTANT[opcode]())
        elif opcode in ("PROTO", "FRAME"):
            pass
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            push(self.memo[argument])
        elif opcode in _TUPLES:
            values = [self.pop() for _ in range(_TUPLES[opcode])]
            push(tuple(values[::-1]))
        elif opcode == "TUPLE":
            push(tuple(self.pop_to_mark()))
        elif opcode == "FROZENSET":
            push(self.pop_to_mark())
        elif opcode == "APPEND":
            value = self.pop()
            self._top(list).append(value)
        elif opcode in ("APPENDS", "ADDITEMS"):
            values = self.pop_to_mark()
            self._top(list).extend(values)
        elif opcode == "SETITEM":
            value, key = self.pop(), self.pop()
            self._top(dict)[self._key(key)] = value
        elif opcode == "SETITEMS":
            values = self.pop_to_mark()
            target = self._top(dict)
            for key, value in zip(values[::2], values[1::2], strict=True):
                target[self._key(key)] = value
        elif opcode == "GLOBAL":
            module, name = argument.split(" ", 1)
            push(self._global(module, name))
        elif opcode == "STACK_GLOBAL":
            name, module = self.pop(), self.pop()
            push(self._global(module, name))
        elif opcode == "REDUCE":
            arguments, function = self.pop(), self.pop()
            push(self._call(function, arguments))
        elif opcode == "BUILD":
            self._build()
        elif opcode == "BINPERSID":
            push(self.persistent_load(self.pop()))
        else:
            raise PickleError(f"its pickle uses the instruction {opcode}, which no weights need")

    def _top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise PickleError(f"its pickle is damaged (no {kind.__name__} to fill)")
        return self.stack[-1]

    def _key(self, key: Any) -> Any:
        if isinstance(key, Global):
            return key.name  # Lightning keys its callbacks by their class
        if not isinstance(key, _KEY_TYPES):
            raise PickleError(f"its pickle keys a dict by a {type(key).__name__}")
        if isinstance(key, int) and abs(key) >= _KEY_LIMIT:
            raise PickleError(f"its pickle keys a dict by an integer of {key.bit_length()} bits")
        return key

    def _global(self, module: Any, name: Any) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError(
                f"its pickle is damaged (a global named {shown(module)}, {shown(name)})"
            )
        full = f"{module}.{name}"
        if full not in self.allowed:
            raise PickleError(
                f"its pickle asks for {named(full)}, which is not among the globals that weights "
                "need; nothing was run"
            )
        return Global(full, self.allowed[full])

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Global) or function.call is None:
            name = function.name if isinstance(function, Global) else type(function).__name__
            raise PickleError(f"its pickle calls {name}, which is not allowed; nothing was run")
        if not isinstance(arguments, tuple):
            raise PickleError(f"its pickle is damaged (arguments of {function.name})")
        return function.call(*arguments)

    def _build(self) -> None:
        """Object state. An OrderedDict's attributes and a numpy dtype's details are not needed."""
        self.pop()
        if not isinstance(self.stack[-1], dict | Inert):
            raise PickleError("its pickle sets the state of an object, which no weights need")
