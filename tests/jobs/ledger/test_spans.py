"""Numbers of images as a short text, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.ledger.spans import dump_spans, read_spans

MANY = 10_000


@given(st.sets(st.integers(0, MANY), min_size=1))
def test_there_and_back(numbers):
    assert read_spans(dump_spans(numbers), MANY + 1) == sorted(numbers)


@given(st.sets(st.integers(0, 99), min_size=1), st.integers(1, 20))
def test_only_the_last_are_read(numbers, most):
    assert read_spans(dump_spans(numbers), most) == sorted(numbers)[-most:]


def test_a_long_span_is_not_written_out():
    assert read_spans("0-9999999999", 3) == [9999999997, 9999999998, 9999999999]
    assert read_spans("0-9999999999,5", 1) == [5]


@pytest.mark.parametrize(
    "text", ["", "x", "1-", "-1", "1,,2", "9-3", "1 2", "1-2-3", "٣", "1" * 11]
)
def test_what_is_no_such_text(text):
    with pytest.raises(ValueError, match=r"no number|ends before"):
        read_spans(text, 10)
