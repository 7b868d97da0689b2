"""Settings of an image: each wrong value and type is named with what is allowed."""

from __future__ import annotations

import fractions

import numpy as np
import pytest
import torch

from sd_core.spec import Sampling

WRONG = [
    ("sampler", "dpm", "sampler 'dpm' is unknown; one of plms, ddim"),
    ("sampler", None, "sampler None is unknown; one of plms"),
    ("sampler", np.array(["plms", "ddim"]), "is unknown; one of plms"),
    ("steps", "50", "steps '50' is no whole number; expected one within 1 to 1000"),
    ("steps", 50.0, "steps 50.0 is no whole number; expected one within 1 to 1000"),
    ("steps", True, "steps True is no whole number"),
    ("steps", None, "steps None is no whole number"),
    ("steps", [1] * 1000, r"steps \[1, 1, .{0,80} is no whole number"),
    ("steps", np.array([1, 2]), "is no whole number"),
    ("steps", 0, "steps 0 is not within 1 to 1000"),
    ("steps", np.int64(1001), "steps 1001 is not within 1 to 1000"),
    (
        "width",
        "512",
        "width '512' is no whole number; expected one that is a multiple of 8 within 64",
    ),
    ("width", 100, "width 100 is not a multiple of 8 within 64 to 4096"),
    ("height", 512.5, "height 512.5 is no whole number"),
    ("seed", "random", r"seed 'random' is no whole number; expected one within 0 to 2\^64 - 1"),
    ("seed", -1, r"seed -1 is not within 0 to 2\^64 - 1"),
    ("guidance", "7.5", "guidance '7.5' is no number; expected one that is finite"),
    ("guidance", True, "guidance True is no number"),
    ("guidance", None, "guidance None is no number"),
    ("guidance", 1j, "guidance 1j is no number"),
    ("guidance", 10**400, "guidance 1000.* is no number; expected one that is finite"),
    ("guidance", float("nan"), "guidance nan is not a finite number"),
    ("guidance", np.float32("inf"), "guidance inf is not a finite number"),
    ("strength", "0.5", "strength '0.5' is no number; expected one within 0 to 1"),
    ("strength", 75, "strength 75 is not within 0 to 1"),
    ("eta", (0,), r"eta \(0,\) is no number; expected one within 0 to 1"),
    ("karras", 1, "karras 1 is neither True nor False"),
    ("karras", "yes", "karras 'yes' is neither True nor False"),
]


@pytest.mark.parametrize(("name", "value", "said"), WRONG)
def test_a_wrong_setting_is_named_with_what_is_allowed(name, value, said):
    with pytest.raises(ValueError, match=said):
        Sampling(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("seed", np.uint64(2**64 - 1), 2**64 - 1),
        ("steps", torch.tensor(5), 5),
        ("width", np.int16(64), 64),
        ("guidance", np.float32(2.5), 2.5),
        ("guidance", np.int64(2), 2.0),
        ("strength", fractions.Fraction(1, 4), 0.25),
        ("guidance", 7, 7),
    ],
)
def test_a_number_of_another_library_becomes_pythons_own(name, value, kept):
    """And an int given for a share or a scale stays one, for names of images depend on it."""
    found = getattr(Sampling(**{name: value}), name)
    assert (found, type(found)) == (kept, type(kept))
