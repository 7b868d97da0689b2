"""What one touches to add a thing, tried in a copy of the source tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.task import Task
from sd_core.spec import Sampling

ROOT = Path(__file__).parents[1]
PACKAGES = ("jobs", "sd_core", "worker", "tests")


class Copy:
    """The tree with changes. touched: the files that were changed or added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.touched: set[str] = set()
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.safetensors", "golden.json")
        for package in PACKAGES:
            shutil.copytree(ROOT / package, folder / package, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", folder)

    def add(self, path: str, text: str) -> None:
        """A new file, or lines at the end of one."""
        self.touched.add(path)
        with (self.folder / path).open("a", encoding="utf-8") as file:
            file.write(text)

    def insert(self, path: str, before: str, text: str) -> None:
        self.touched.add(path)
        file = self.folder / path
        head, found, tail = file.read_text("utf-8").partition(before)
        assert found, f"{path} has no {before!r}"
        file.write_text(head + text + found + tail, "utf-8")

    def run(self, *arguments: str) -> str:
        environ = os.environ | {"PYTHONPATH": str(self.folder)}
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path / "tree")


USE_SAMPLER = """
import json, sys
from pathlib import Path
import sd_core
assert Path(sd_core.__file__).is_relative_to(Path.cwd()), sd_core.__file__
from jobs.manifest.load import load_manifest
from jobs.manifest.schema import json_schema
from sd_core.sampling.samplers import step_table
from worker.output.a1111 import a1111_text

Path("job.yaml").write_text(
    "version: 1\\nprompts: [{prompt: a ring, sampler: midpoint, steps: 5, karras: true}]\\n"
)
(task,) = load_manifest(Path("job.yaml")).tasks()
record = {**task.canonical(), "model": {"name": "demo", "digest": "0" * 64}}
print(json.dumps({
    "rows": len(step_table("midpoint", 5, karras=True)),
    "evaluations": load_manifest(Path("job.yaml")).expansion.cost.evaluations,
    "schema": "midpoint" in json.dumps(json_schema()),
    "text": a1111_text(record),
}))
"""


def test_a_sampler_is_a_function_and_a_row_of_a_table(copy: Copy):
    copy.add(
        "sd_core/sampling/noise_levels.py",
        "\n\ndef midpoint(grid: Grid) -> StepTable:\n"
        '    """One for this test: Euler by another name."""\n'
        "    return euler(grid)\n",
    )
    copy.insert(
        "sd_core/sampler_table.py",
        '    "lms": Sampler(',
        '    "midpoint": Sampler("noise_levels", "Midpoint", None, 1),\n',
    )
    said = json.loads(copy.run("-c", USE_SAMPLER))
    assert (said["rows"], said["evaluations"], said["schema"]) == (5, 5, True)
    assert "Sampler: Midpoint, Schedule type: Karras" in said["text"]
    assert len(copy.touched) <= 2


USE_SETTING = """
import json
from pathlib import Path
from jobs.manifest.load import load_manifest
from jobs.manifest.schema import json_schema
from jobs.plan.part import dump
from jobs.plan.task_line import read_task
from jobs.report.fields import index_row
from jobs.report.gallery import gallery_page
from jobs.task import Task
from sd_core.spec import Sampling
from tests.worker.samples import MODEL, RENDER
from worker.output.a1111 import a1111_text
from worker.output.record import image_record, record_line

Path("rows.csv").write_text("prompt,churn\\na ring,0.25\\na star,\\n")
Path("job.yaml").write_text(
    "version: 1\\n"
    "prompts: [{prompt: a moon, churn: 0.5}, {file: rows.csv}]\\n"
)
Path("sweep.yaml").write_text("version: 1\\nmatrix: {churn: [0, 1]}\\nprompts: [a ring]\\n")
tasks = list(load_manifest(Path("job.yaml")).tasks())
lines = dump(tasks).splitlines(keepends=True)
record = image_record(tasks[0], MODEL, RENDER)
line = record_line(record, "images/a.png", b"x", timings_s={}, finished="")
page = gallery_page("job", [], 1, [], [])
plain = Task(0, "a", "a ring", "", Sampling())
print(json.dumps({
    "values": [task.sampling.churn for task in tasks],
    "sweep": [task.sampling.churn for task in load_manifest(Path("sweep.yaml")).tasks()],
    "plan": [read_task(line, i) == tasks[i] for i, line in enumerate(lines)],
    "named": ["churn" in task.canonical() for task in tasks],
    "before": plain.canonical_json(),
    "record": record["churn"],
    "text": a1111_text(record),
    "page": "Churn of the noise" in page and index_row(line)["churn"] == 0.5,
    "schema": json.dumps(json_schema()).count("How much noise"),
}))
try:
    Path("bad.yaml").write_text("version: 1\\ndefaults: {churn: 2}\\nprompts: [a ring]\\n")
    load_manifest(Path("bad.yaml"))
except Exception as error:
    print(error)
"""


def test_a_setting_of_an_image_is_a_field_and_a_row_of_a_table(copy: Copy):
    """Beside what uses it. Pictures at its default keep their names."""
    copy.insert(
        "sd_core/spec.py",
        "    def __post_init__(self) -> None:\n        if tuple(map(type",
        "    churn: float = 0.0\n\n",
    )
    copy.insert(
        "jobs/image_settings.py",
        '}\n"""Name of a setting',
        '    "churn": ImageSetting(\n'
        '        Share, "How much noise is stirred in.", "a number within 0 to 1",\n'
        '        "Churn of the noise", webui="Sigma churn",\n'
        "    ),\n",
    )
    said, refused = copy.run("-c", USE_SETTING).splitlines()
    found = json.loads(said)
    assert found["values"] == [0.5, 0.25, 0.0]
    assert found["sweep"] == [0, 1]
    assert found["plan"] == [True] * 3
    assert found["named"] == [True, True, False]
    assert found["before"] == Task(0, "a", "a ring", "", Sampling()).canonical_json()
    assert found["record"] == 0.5
    assert "Sigma churn: 0.5" in found["text"]
    assert found["page"]
    assert found["schema"] >= 2  # a prompt's, and the matrix's
    assert "bad.yaml:2:19: defaults.churn: found 2, expected a number within 0 to 1" in refused
    assert len(copy.touched) + 1 <= 3  # one more for what uses it


STORE = '''
"""A store for this test: a folder by another address."""

from pathlib import Path

from jobs.storage.filesystem import LocalStore


class ShelfStore(LocalStore):
    """shelf://name lies in a folder of that name."""

    def __init__(self, address: str) -> None:
        super().__init__(Path(address.removeprefix("shelf://")))
'''


def test_a_store_is_a_module_an_address_and_a_fixture(copy: Copy):
    copy.add("jobs/storage/shelf.py", STORE)
    copy.insert(
        "jobs/storage/__init__.py",
        '    if scheme == "s3":\n',
        '    if scheme == "shelf":\n'
        "        from jobs.storage.shelf import ShelfStore\n\n"
        "        return ShelfStore(url)\n",
    )
    copy.insert(
        "tests/contracts/test_stores.py",
        '    if request.param == "local":\n',
        '    if request.param == "shelf":\n        return f"shelf://{tmp_path}/store"\n',
    )
    fixture = copy.folder / "tests/contracts/test_stores.py"
    text = fixture.read_text("utf-8")
    fixture.write_text(text.replace('params=["local", "s3"]', 'params=["shelf"]'), "utf-8")
    contract = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contracts/test_stores.py")
    copy.run(*contract, "-k", "shelf")
    assert len(copy.touched) <= 3
