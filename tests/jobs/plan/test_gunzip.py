"""Compressed lines within limits."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import tracemalloc
from collections import deque

import pytest

from jobs.plan.gunzip import gunzip_lines

LIMITS = {"most_lines": 100, "line_bytes": 1000, "total_bytes": 10_000}


def unpacked(data: bytes, **limits: int) -> list[bytes]:
    return list(gunzip_lines(data, **{**LIMITS, **limits}))


@pytest.mark.parametrize("text", [b"", b"a\n", b"a\nb\n", b"a\nb", b"\n\n"])
def test_lines_come_back(text: bytes):
    assert b"".join(unpacked(gzip.compress(text))) == text
    assert unpacked(gzip.compress(text)) == text.splitlines(keepends=True)


def test_limits_are_inclusive():
    assert len(unpacked(gzip.compress(b"x\n" * 100))) == 100
    assert unpacked(gzip.compress(b"x" * 999 + b"\n")) == [b"x" * 999 + b"\n"]
    assert len(unpacked(gzip.compress((b"x" * 99 + b"\n") * 100))) == 100


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        (b"x\n" * 101, "more than 100 lines"),
        (b"x\n" + b"x" * 1001, "line 2 is longer than 1,000 bytes"),
        ((b"x" * 999 + b"\n") * 11, "more than 10,000 bytes"),
    ],
)
def test_what_is_over_a_limit(text: bytes, flaw: str):
    with pytest.raises(ValueError, match=flaw):
        unpacked(gzip.compress(text))


@pytest.mark.parametrize(
    ("data", "flaw"),
    [
        (b"no gzip", "Not a gzipped file"),
        (gzip.compress(b"a\n")[:-9], "ended before"),
        (gzip.compress(b"a\n")[:-8] + bytes(8), "CRC check failed"),
    ],
    ids=["other", "cut", "checksum"],
)
def test_damaged_data(data: bytes, flaw: str):
    with pytest.raises(ValueError, match=flaw):
        unpacked(data)


def test_bits_flipped_anywhere_raise_nothing_else():
    whole = bytearray(gzip.compress(b"a line\n" * 50))
    for place, bit in itertools.product(range(len(whole)), range(8)):
        whole[place] ^= 1 << bit
        with contextlib.suppress(ValueError):
            unpacked(bytes(whole))
        whole[place] ^= 1 << bit


def test_a_bomb_takes_no_memory():
    zeros = gzip.compress(bytes(2**26), 1)
    long_lines = gzip.compress((bytes(2**16) + b"\n") * 1000, 1)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="longer than"):
            unpacked(zeros, line_bytes=100_000)
        with pytest.raises(ValueError, match="unpacks to more than"):
            deque(
                gunzip_lines(long_lines, most_lines=10**4, line_bytes=10**5, total_bytes=2**25),
                maxlen=0,
            )
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()
