"""Rows of the batch that a prompt asks for."""

from __future__ import annotations

import pytest

from sd_core.engine.request import Request
from sd_core.prompt.conditions import MOST_PARTS, MOST_TEXTS, PromptReader
from sd_core.prompt.errors import PromptError
from sd_core.spec import Sampling

PLAIN = PromptReader("plain", 10, "chunk", "a1111", 1)
A1111 = PromptReader("a1111", 10, "cut", "comfy", 2)


def texts(condition) -> list[tuple[int, str]]:
    return [
        (until.step, "|".join("".join(f.text for f in s) for s in until.text.sections))
        for until in condition.texts
    ]


def test_a_plain_prompt_is_one_text_as_it_stands():
    (row,) = PLAIN.prompt("(a:1.2) AND [b:c:3] BREAK")
    assert texts(row) == [(10, "(a:1.2) AND [b:c:3] BREAK")]
    ((_, text),) = row.texts
    assert (text.emphasis, text.commas, text.cut, text.clip_skip) == ("none", False, False, 1)


def test_settings_go_to_every_text():
    (row,) = A1111.prompt("[a:b:5]")
    assert texts(row) == [(5, "a"), (10, "b")]
    for _, text in row.texts:
        assert (text.emphasis, text.commas, text.cut, text.clip_skip) == ("comfy", True, True, 2)


@pytest.mark.parametrize(
    ("prompt", "rows"),
    [
        ("a cat AND a dog", [("a cat ", 1.0), (" a dog", 1.0)]),
        ("a cat :1.2 AND a dog : -0.5 AND sun", [("a cat", 1.2), (" a dog", -0.5), (" sun", 1.0)]),
        ("SAND AND LAND", [("SAND ", 1.0), (" LAND", 1.0)]),
        ("at 16:9", [("at 16:9", 1.0)]),
        ("a AND ", [("a ", 1.0), ("", 1.0)]),
    ],
)
def test_parts(prompt: str, rows):
    found = A1111.prompt(prompt)
    assert [(texts(row)[0][1].strip(), row.weight) for row in found] == [
        (text.strip(), weight) for text, weight in rows
    ]


def test_in_a_negative_prompt_and_is_a_word():
    assert texts(A1111.negative("a AND b")) == [(10, "a AND b")]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (" AND ".join("a" * (MOST_PARTS + 1)), "9 parts are combined by AND; at most 8"),
        ("[" + "|".join(map(str, range(MOST_TEXTS + 1))) + "]", "more than 64 different texts"),
    ],
)
def test_more_than_there_may_be(prompt: str, said: str):
    with pytest.raises(PromptError, match=said):
        PromptReader("a1111", 200, "chunk", "a1111", 1).prompt(prompt)


def test_a_flaw_in_a_part_is_where_it_is_in_the_prompt():
    with pytest.raises(PromptError, match="is no number") as error:
        A1111.prompt("a cat AND (dog:1..2)")
    assert error.value.offset == 15


@pytest.mark.parametrize(
    ("prompt", "guidance", "rows"),
    [
        ("a", 7.5, 2),
        ("a", 1.0, 1),
        ("a AND b", 7.5, 3),
        ("a AND b", 1.0, 3),
        ("a :0.5 AND b AND c", 2.0, 4),
    ],
)
def test_rows_of_a_request(prompt: str, guidance: float, rows: int):
    assert Request(prompt, Sampling(guidance=guidance, syntax="a1111")).rows == rows
    assert Request(prompt, Sampling(guidance=guidance)).rows == (1 if guidance == 1.0 else 2)


@pytest.mark.parametrize(
    ("prompt", "negative", "said"),
    [
        ("[a:b:99]", "", r"prompt: the prompt changes at 99, .* at character 6"),
        ("a", "(b:1.2.3)", r"negative: weight '1\.2\.3' is no number, at character 4"),
    ],
)
def test_a_request_with_a_flaw_says_where(prompt: str, negative: str, said: str):
    with pytest.raises(ValueError, match=said):
        Request(prompt, Sampling(syntax="a1111"), negative)
