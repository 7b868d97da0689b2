"""Numbers and names in sentences."""

from __future__ import annotations

import pytest

from jobs.formatting import agreeing, counted, unknown_model


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (2000, "2,000 images")]
)
def test_a_noun_goes_with_its_number(number, said):
    assert counted(number, "image") == said


def test_words_that_are_not_made_with_an_s():
    assert [counted(n, "copy", "copies") for n in (1, 2)] == ["1 copy", "2 copies"]
    assert [agreeing(n, "was", "were") for n in (0, 1, 2)] == ["were", "was", "were"]


def test_models_are_named_once_each():
    said = unknown_model("x", ["demo", "sd-v1-4"])
    assert "known are demo, sd-v1-4 (" in said
