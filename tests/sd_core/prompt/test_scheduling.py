"""Prompts that change from step to step: AUTOMATIC1111's rules."""

from __future__ import annotations

import itertools
import time

import hypothesis
import hypothesis.strategies as st
import pytest

from sd_core.prompt.errors import PromptError
from sd_core.prompt.scheduling import parse_schedule


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a cat", [(10, "a cat")]),
        ("a [cat:dog:0.5] runs", [(5, "a cat runs"), (10, "a dog runs")]),
        ("a [cat:dog:3]", [(3, "a cat"), (10, "a dog")]),
        ("a [cat:dog: 3 ]", [(3, "a cat"), (10, "a dog")]),
        ("a[ cat:4]", [(4, "a"), (10, "a cat")]),
        ("a[ cat::4]", [(4, "a cat"), (10, "a")]),
        ("[cat:dog:0]", [(10, "dog")]),
        ("[cat:dog:0.0]", [(10, "dog")]),
        ("[cat:dog:10]", [(10, "cat")]),
        ("[cat:dog:1.0]", [(10, "cat")]),
        ("[a|b]", [(n, "ab"[(n - 1) % 2]) for n in range(1, 11)]),
        ("[[a:b:4]:c:7]", [(4, "a"), (7, "b"), (10, "c")]),
        ("[a:[b|c]:8]", [(8, "a"), (9, "b"), (10, "c")]),
        ("[(cat:1.2):(dog:1.3):5]", [(5, "(cat:1.2)"), (10, "(dog:1.3)")]),
        ("[cat:dog:5] [sun:moon:2]", [(2, "cat sun"), (5, "cat moon"), (10, "dog moon")]),
        ("[cat]", [(10, "[cat]")]),
        ("[a [b:c:5] d]", [(5, "[a b d]"), (10, "[a c d]")]),
        ("[a:b:c:5]", [(10, "[a:b:c:5]")]),
        ("[a:b:few]", [(10, "[a:b:few]")]),
        (r"\[a:b:5]", [(10, r"\[a:b:5]")]),
        (r"[a\:x:b:5]", [(5, r"a\:x"), (10, "b")]),
        ("[a:b:5", [(10, "[a:b:5")]),
        ("[a(b:5]", [(10, "[a(b:5]")]),
        ("a|b [c:d:5]", [(5, "a|b c"), (10, "a|b d")]),
        ("[same:same:5]", [(10, "same")]),
    ],
)
def test_texts(prompt: str, texts):
    assert parse_schedule(prompt, 10) == tuple(texts)


@pytest.mark.parametrize(
    ("prompt", "said", "offset"),
    [
        ("a [b:c:11]", "changes at 11, which is outside its 10 steps", 7),
        ("[b:c:-1]", "changes at -1, which is outside its 10 steps", 5),
        ("[b:c:1.5]", "changes at 1.5, which is outside its 10 steps", 5),
        ("[b:[c:d:12]:5]", "changes at 12", 8),
        ("[a:" * 40 + ":1]" * 40, "nested more than 32 deep", 97),
    ],
)
def test_what_is_wrong_is_said_and_where(prompt: str, said: str, offset: int):
    with pytest.raises(PromptError, match=said) as error:
        parse_schedule(prompt, 10)
    assert error.value.offset == offset


@hypothesis.given(st.text(alphabet="ab ()[]:\\.|0159", max_size=60), st.integers(1, 12))
def test_any_text_is_read_or_refused(prompt: str, steps: int):
    try:
        found = parse_schedule(prompt, steps)
    except PromptError:
        return
    ends = [one.step for one in found]
    assert ends == sorted(set(ends))
    assert ends[-1] == steps
    assert all(one.text != other.text for one, other in itertools.pairwise(found))


@pytest.mark.parametrize("text", ["[", "[a:", "[a|b]", "(", "[a:b:3]", "[a:b:0.5", "]", "[("])
def test_ten_thousand_characters_are_no_hard_work(text: str):
    began = time.process_time()
    parse_schedule(text * (10_000 // len(text)), 100)
    assert time.process_time() - began < 20  # patterns that go back and forth would take minutes
