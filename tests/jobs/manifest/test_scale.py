"""A million images plan in little memory; `tests.bench.control_plane` measures the time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs.manifests import write

HEAD = "version: 1\nname: big\ndefaults: {steps: 30}\n"

PLAN = """
import json, pathlib, sys
from jobs.cli import main

def peak_kb():
    # Not getrusage: its peak is that of the process that started this one, if that was larger.
    status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").open())
    return int(status["VmHWM"].split()[0])

imported = peak_kb()
code = main(["plan", "--json", sys.argv[1]])
print(json.dumps({"code": code, "kb": peak_kb() - imported}))
"""


def plain(folder: Path, count: int) -> Path:
    lines = (f"- a red circle number {n} on a blue background\n" for n in range(count))
    return write(folder, HEAD + "prompts:\n" + "".join(lines))


def seeds(folder: Path, count: int) -> Path:
    return write(folder, f"{HEAD}prompts:\n- {{prompt: a, seeds: {{start: 0, count: {count}}}}}\n")


def rows(folder: Path, count: int) -> Path:
    lines = (f'"a red circle, number {n}",{n},{5 + n % 7 / 2}\n' for n in range(count))
    write(folder, "prompt,seed,guidance\n" + "".join(lines), "rows.csv")
    return write(folder, HEAD + "prompts:\n- file: rows.csv\n")


FORMS = [plain, seeds, rows]


def plan(path: Path) -> tuple[dict, dict]:
    """The plan and what planning took, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PLAN, path], capture_output=True, text=True, check=True
    )
    *document, usage = done.stdout.splitlines()
    return json.loads("\n".join(document)), json.loads(usage)


@pytest.mark.parametrize("form", FORMS)
def test_twenty_thousand(tmp_path, form):
    summary, usage = plan(form(tmp_path, 20_000))
    assert usage["code"] == 0
    assert summary["images"] == 20_000
    assert summary["evaluations"] == 20_000 * 31
    assert summary["last"]["index"] == 19_999
    assert usage["kb"] < 60_000


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_million(tmp_path, form):
    summary, usage = plan(form(tmp_path, 1_000_000))
    assert summary["images"] == 1_000_000
    assert usage["kb"] < 250_000
