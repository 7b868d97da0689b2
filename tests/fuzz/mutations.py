"""Damaged bytes and odd JSON, made from sound samples; hypothesis makes failures small."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

ODD_NUMBERS = (
    *(-1, 0, 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400),
    *(0.5, -0.0, 1e308, float("inf"), float("nan")),
)
ODD_TEXTS = (
    *("", " ", "\0", "\ud800", "a" * 3000, "..", "/", "../x", "a/b", "\u202e", "{x}", "%s", "-1"),
    *("1e999", "nan", "exe", "png", "plms", "s3://b/k", "-" * 300),
)
TOKENS = (
    *(b"\0", b"\n", b"\xff\xfe", b"\xed\xa0\x80", b"{", b"}", b"[", b"]", b'"', b"\\u0000"),
    *(b"null", b"true", b"-1", b"1e999", b"NaN", b": ", b"- ", b"&a *a", b"<<: *a"),
    *(b"!!python/name:os.system", b"{}" * 50, b"[" * 2000, b"9" * 5000, b"(" * 500, b"]" * 500),
    *(b"cos\nsystem\n", b"\x80\x02}", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08"),
    *(b"IHDR", b"IDAT", b"RIFF"),
)
"""Pieces that mean something to one of the formats."""

_places = st.floats(0, 1, exclude_max=True)
"""Where in the bytes, whatever their length."""


def _at(data: bytes, place: float) -> int:
    return int(place * len(data))


@st.composite
def damaged(draw: st.DrawFn, samples: Sequence[bytes]) -> bytes:
    """A sample after a few accidents: bits flipped, parts lost, doubled or replaced."""
    data = draw(st.sampled_from(samples))
    for _ in range(draw(st.integers(1, 4))):
        start = _at(data, draw(_places))
        kind = draw(st.sampled_from(("flip", "byte", "cut", "lose", "double", "token", "number")))
        if kind == "flip" and data:
            data = _put(data, start, bytes([data[start] ^ 1 << draw(st.integers(0, 7))]), 1)
        elif kind == "byte":
            data = _put(data, start, bytes([draw(st.integers(0, 255))]), 1)
        elif kind == "cut":
            data = data[:start]
        elif kind == "lose":
            data = data[:start] + data[start + draw(st.integers(1, 64)) :]
        elif kind == "double":
            part = data[start : start + draw(st.integers(1, 64))]
            data = data[:start] + part * draw(st.sampled_from((2, 3, 200))) + data[start:]
        elif kind == "token":
            data = _put(data, start, draw(st.sampled_from(TOKENS)), draw(st.integers(0, 8)))
        else:
            size = draw(st.sampled_from((1, 2, 4, 8)))
            number = draw(st.sampled_from((0, 1, -1, 2**31 - 1, -(2**31), 2**62)))
            order = draw(st.sampled_from(("little", "big")))
            data = _put(data, start, (number % 2 ** (8 * size)).to_bytes(size, order), size)
    return data


def _put(data: bytes, start: int, piece: bytes, instead_of: int) -> bytes:
    return data[:start] + piece + data[start + instead_of :]


odd_values: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from((None, True, False, [], {}, [[]], {"": {}})),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(ODD_TEXTS),
    st.integers(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
)


@st.composite
def odd_json(draw: st.DrawFn, samples: Sequence[Any]) -> Any:
    """A sample whose values were replaced, left out or added to, at any depth."""
    value = json.loads(json.dumps(draw(st.sampled_from(samples))))
    for _ in range(draw(st.integers(1, 3))):
        value = _changed(draw, value)
    return value


def _changed(draw: st.DrawFn, value: Any) -> Any:
    if isinstance(value, (dict, list)) and value and draw(st.integers(0, 9)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = draw(st.sampled_from(keys))
        kind = draw(st.sampled_from(("change", "change", "change", "lose", "add", "nest")))
        if kind == "change":
            value[key] = _changed(draw, value[key])
        elif kind == "lose":
            del value[key]
        elif kind == "nest":
            value[key] = [value[key]]
        elif isinstance(value, dict):
            value[draw(st.sampled_from(ODD_TEXTS))] = copy.deepcopy(draw(odd_values))
        else:
            value.insert(key, copy.deepcopy(draw(odd_values)))
        return value
    return copy.deepcopy(draw(odd_values))
