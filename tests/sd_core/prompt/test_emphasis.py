"""Weights in prompts: AUTOMATIC1111's rules, by what its documentation says of them."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from sd_core.prompt.emphasis import MOST_WEIGHT, parse_emphasis
from sd_core.prompt.errors import PromptError

UP, DOWN = 1.1, 1 / 1.1


@pytest.mark.parametrize(
    ("prompt", "sections"),
    [
        ("a cat", [[("a cat", 1.0)]]),
        ("", [[]]),
        ("a (cat) runs", [[("a ", 1.0), ("cat", UP), (" runs", 1.0)]]),
        ("((cat))", [[("cat", UP * UP)]]),
        ("[cat]", [[("cat", DOWN)]]),
        ("(a cat:1.3)", [[("a cat", 1.3)]]),
        ("(cat: 0.5 )", [[("cat", 0.5)]]),
        ("(cat:-1)", [[("cat", -1.0)]]),
        ("(cat:.5)", [[("cat", 0.5)]]),
        ("(a (cat:2) runs:0.5)", [[("a ", 0.5), ("cat", 1.0), (" runs", 0.5)]]),
        ("[(cat:1.5)]", [[("cat", 1.5 * DOWN)]]),
        (r"\(cat\) \[x\] \\", [[(r"(cat) [x] ", 1.0), ("\\", 1.0)]]),
        ("a (cat runs", [[("a ", 1.0), ("cat runs", UP)]]),
        ("a cat) runs]", [[("a cat) runs]", 1.0)]]),
        ("a cat:1.3) runs", [[("a cat:1.3) runs", 1.0)]]),
        ("at 16:9, (cat)", [[("at 16:9, ", 1.0), ("cat", UP)]]),
        ("[cat:1.3]", [[("cat:1.3", DOWN)]]),
        ("(cat:1.0) runs", [[("cat runs", 1.0)]]),
        ("(:1.2)", [[]]),
        ("a BREAK b", [[("a", 1.0)], [("b", 1.0)]]),
        ("(a BREAK b:1.2) c", [[("a", 1.2)], [("b", 1.2), (" c", 1.0)]]),
        ("BREAK", [[], []]),
        ("BREAKFAST", [[("BREAKFAST", 1.0)]]),
        ("\\", [[("\\", 1.0)]]),
    ],
)
def test_sections(prompt: str, sections):
    found = parse_emphasis(prompt)
    texts = [["".join(text for text, _ in one)] for one in found]
    assert texts == [["".join(text for text, _ in one)] for one in sections]
    for one, wanted in zip(found, sections, strict=True):
        merged = [w for n, (_, w) in enumerate(wanted) if not n or wanted[n - 1][1] != w]
        assert [fragment.weight for fragment in one] == pytest.approx(merged)


@pytest.mark.parametrize(
    ("prompt", "said", "offset"),
    [
        ("(cat:1.2.3)", "weight '1.2.3' is no number", 5),
        ("a (cat:...)", "weight '...' is no number", 7),
        ("a (cat:101)", "weight 101 of 'cat' is beyond 100", 3),
        ("((cat:20):20)", "weight 400 of 'cat' is beyond 100", 2),
        ("(" * 200, "nested more than 100 deep", 100),
    ],
)
def test_what_is_wrong_is_said_and_where(prompt: str, said: str, offset: int):
    with pytest.raises(PromptError, match=said.replace(".", r"\.")) as error:
        parse_emphasis(prompt)
    assert error.value.offset == offset


@hypothesis.given(st.text(alphabet="ab ()[]:\\.,19-|B", max_size=60))
def test_any_text_is_read_or_refused(prompt: str):
    try:
        sections = parse_emphasis(prompt)
    except PromptError:
        return
    fragments = [fragment for section in sections for fragment in section]
    assert all(text and abs(weight) <= MOST_WEIGHT for text, weight in fragments)
    if not set(prompt) & set("()[]\\"):
        assert [text for text, _ in fragments] == ([prompt] if prompt else [])
