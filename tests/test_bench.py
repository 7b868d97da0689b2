"""Benchmarks say what was wanted, and with --check whether it was met. Nothing is timed here."""

from __future__ import annotations

import json
import sys

import pytest

from tests.bench import control_plane, overlap
from tests.bench.wanted import Wanted, judged, missed

GOOD = {
    "million": {"new": {"seconds": 120.0, "peak_memory_mib": 200}, "redis_mib": 3.5},
    "settling": {"images_per_s": 900},
    "waiting": {"share_of_ideal": 0.97},
}
MISSES = [
    ("million", {"new": {"seconds": 300.1, "peak_memory_mib": 200}, "redis_mib": 3.5}),
    ("million", {"new": {"seconds": 120.0, "peak_memory_mib": 401}, "redis_mib": 3.5}),
    ("settling", {"images_per_s": 499}),
    ("waiting", {"share_of_ideal": 0.9499}),
]


def test_limits_belong_to_what_is_wanted():
    for limit in (Wanted("x", least=0.95), Wanted("x", most=0.95)):
        assert limit.met(0.95)
    assert not Wanted("x", least=0.95).met(0.9499)
    assert not Wanted("x", most=0.95).met(0.9501)


def test_what_was_missed_is_found_at_any_depth():
    part = judged({"a": {"b": 2}, "c": 1}, (Wanted("a.b", most=1), Wanted("c", least=1)))
    assert part["wanted"]["a.b"] == {"measured": 2, "most": 1, "met": False}
    assert part["wanted"]["c"] == {"measured": 1, "least": 1, "met": True}
    (line,) = missed({"part": part, "other": {"wanted": {}}})
    assert line.startswith("part.a.b: ")
    with pytest.raises(KeyError):
        judged({}, (Wanted("a", least=1),))


def run_control_plane(monkeypatch, figures, *options) -> int:
    parts = {name: lambda folder, name=name: figures[name] for name in figures}
    monkeypatch.setattr(control_plane, "PARTS", parts)
    monkeypatch.setattr(sys, "argv", ["control_plane", *options])
    return control_plane.main()


def test_good_figures_pass(monkeypatch, capsys):
    assert run_control_plane(monkeypatch, GOOD, "--check") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["waiting"]["wanted"]["share_of_ideal"]["met"] is True


@pytest.mark.parametrize(("part", "figures"), MISSES)
def test_a_missed_figure_fails_the_check(monkeypatch, capsys, part, figures):
    assert run_control_plane(monkeypatch, GOOD | {part: figures}, "--check") == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"missed: {part}.")
    assert json.loads(said.out).keys() == GOOD.keys()
    # Without --check, and where only other parts were asked for, nothing fails.
    assert run_control_plane(monkeypatch, GOOD | {part: figures}) == 0


@pytest.mark.parametrize(("share", "code"), [(0.97, 0), (0.9699, 1)])
def test_overlap_is_checked(monkeypatch, capsys, share, code):
    monkeypatch.setattr(overlap, "measure", lambda *_: {"busy_share": share})
    monkeypatch.setattr(sys, "argv", ["overlap", "--check"])
    assert overlap.main() == code
    assert ("missed: busy_share" in capsys.readouterr().err) is bool(code)
    monkeypatch.setattr(sys, "argv", ["overlap"])
    assert overlap.main() == 0
