"""The bench of GPUs runs to its end on a CPU, so that a card's few minutes are not lost to it."""

from __future__ import annotations

import json

import pytest

from tests.bench.gpu import __main__ as gpu


@pytest.mark.slow
def test_every_section_of_the_gpu_bench_runs(tmp_path, monkeypatch, capsys):
    out = tmp_path / "gpu.json"
    monkeypatch.setattr("sys.argv", ["gpu", "--device", "cpu", "--quick", "--out", str(out)])
    assert gpu.main() == 0
    report = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == report
    assert {section.__name__ for section in gpu.SECTIONS} <= report.keys()
    assert not any("skipped" in report[section.__name__] for section in gpu.SECTIONS)
    assert report["exact"]["images"]["same"]
    assert report["exact"]["evaluation"]["in_another_place"]


def test_a_section_that_raises_leaves_its_error(tmp_path, monkeypatch, capsys):
    def broken(bench):
        raise ZeroDivisionError("no card")

    out = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "SECTIONS", (broken,))
    monkeypatch.setattr(
        "sys.argv", ["gpu", "--device", "cpu", "--quick", "--only", "broken", "--out", str(out)]
    )
    assert gpu.main() == 1
    assert json.loads(out.read_text())["broken"]["error"] == "ZeroDivisionError: no card"
