"""A built wheel, installed in an empty environment, renders the quickstart: an editable install
would hide a module or a file that is not packaged.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "infra/constraints.txt"
NOT_PACKAGED = ("README.md",)


def tracked(*folders: str) -> list[str]:
    """Files under version control; the tree may hold other things."""
    listed = subprocess.run(
        ["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return listed.stdout.split()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the tracked files alone."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked():
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out)]
    subprocess.run([*pip, "--constraint", str(CONSTRAINTS), str(source)], check=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_everything_is_in_it(wheel: Path):
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        name
        for name in tracked("jobs", "sd_core", "worker")
        if not name.startswith("sd_core/cpu/cpp/") and not name.endswith(NOT_PACKAGED)
    }
    assert wanted <= packed


@pytest.mark.slow
def test_it_renders_the_quickstart_in_an_empty_environment(wheel: Path, tmp_path: Path):
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = tmp_path / "env/bin/python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS)]
    subprocess.run([*pip, f"{wheel}[worker]"], check=True)
    (examples,) = (tmp_path / "env/lib").glob("python*/site-packages/jobs/examples")
    done = subprocess.run(
        [str(tmp_path / "env/bin/sdbatch"), "run", str(examples / "quickstart.yaml"), "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["images"], said["rendered"], said["failed"]) == (12, 12, 0)
    assert len(list((tmp_path / said["folder"] / "images").rglob("*.*"))) == 12
