"""`pip install sdbatch` without extras is enough for all but rendering.

All extras are installed where tests run. So modules of distributions that a bare installation does
not bring along are hidden from a process that runs the commands.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import asdict
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infra.sbom import requirements_here
from jobs.errors import ExitCode
from sd_core.spec import Sampling
from tests.commands import COMMANDS
from worker.output.encode import encode_image

ROOT = Path(__file__).parents[2]

RENDERING = {"run", "verify", "bench", "worker", "local"}
"""Commands that draw something, or may."""

RUN = """\
import json, sys
from importlib.abc import MetaPathFinder

hidden, commands = map(json.loads, sys.argv[1:])

class Hide(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
from jobs.cli import main

sys.exit(json.dumps([int(main(command)) for command in commands]))
"""


def bare_installation() -> set[str]:
    """Names of distributions that come without extras, by `pyproject.toml`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = list(map(Requirement, project["dependencies"]))
    found = {"sdbatch"}
    while waiting:
        needed = waiting.pop()
        name = canonicalize_name(needed.name)
        if name not in found or needed.extras:
            found.add(name)
            waiting += requirements_here(distribution(name), needed.extras)
    return found


def hidden_modules() -> list[str]:
    """Top-level modules that a bare installation does not have."""
    bare = bare_installation()
    return [
        module
        for module, distributions in packages_distributions().items()
        if not bare & {canonicalize_name(name) for name in distributions}
    ]


@pytest.fixture
def run(valkey, tmp_path):
    """Runs commands one after the other in one process; their codes and what they said."""
    with valkey.client() as client:
        client.flushall()
    environ = {
        "PATH": "",
        "HOME": str(tmp_path),
        "SDBATCH_REDIS": valkey.url,
        "SDBATCH_STORE": str(tmp_path / "out"),
    }

    def run(*commands: list[str]) -> tuple[list[int], str]:
        done = subprocess.run(
            [sys.executable, "-c", RUN, json.dumps(hidden_modules()), json.dumps(commands)],
            cwd=ROOT,
            env=environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        *said, codes = done.stderr.splitlines()
        return json.loads(codes), done.stdout + "\n".join(said)

    return run


def test_what_is_hidden():
    hidden = set(hidden_modules())
    assert {"torch", "transformers", "safetensors", "prometheus_client", "pytest"} <= hidden
    assert not {"jobs", "click", "redis", "celery", "boto3", "numpy", "PIL"} & hidden


def test_every_command_but_those_that_render(run, tmp_path):
    example, picture = "jobs/examples/sweep.yaml", tmp_path / "picture.png"
    record = {"prompt": "a ring", "negative": "", **asdict(Sampling(width=64, height=64))}
    record["model"] = {"name": "demo", "digest": "0" * 64}
    picture.write_bytes(encode_image(np.zeros((64, 64, 3), np.uint8), record, "png"))
    ran = [
        *(["validate", example], ["plan", example], ["schema"], ["submit", example], ["jobs"]),
        *(["workers"], ["quota"], ["status", "sweep"], ["failures", "sweep"], ["pause", "sweep"]),
        *(["unpause", "sweep"], ["retry", "sweep"], ["resume", "sweep"], ["cancel", "sweep"]),
        *(["grid", "sweep", "--output", str(tmp_path / "grid")], ["forget", "sweep"]),
        *(["init", str(tmp_path / "first.yaml")], ["completion", "zsh"], ["show", str(picture)]),
        ["doctor", "--store", str(tmp_path / "store")],
        ["import", str(picture)],
        ["index", "--store", str(tmp_path / "store")],
        *(["collect", "sweep", str(tmp_path)], ["watch", "sweep"]),
    ]
    codes, said = run(*ran)
    nothing_there = [ExitCode.NOT_FOUND] * 2  # no image to collect, and then no job to watch
    assert codes == [ExitCode.DONE] * 22 + nothing_there, said
    assert "torch is not installed" in said
    assert {command for command, *_ in ran} == set(COMMANDS) - RENDERING - {"dashboard"}


@pytest.mark.parametrize(
    "command",
    [["run", "jobs/examples/sweep.yaml"], ["bench"], ["worker"]],
    ids=lambda words: words[0],
)
def test_those_that_render_say_what_is_missing(run, command):
    codes, said = run(command)
    assert codes == [ExitCode.BAD_INPUT]
    assert "needs torch, which is not installed: pip install 'sdbatch[worker]'" in said


def test_the_page_says_what_is_missing(run):
    codes, said = run(["dashboard"])
    assert codes == [ExitCode.BAD_INPUT]
    assert "needs uvicorn, which is not installed: pip install 'sdbatch[dashboard]'" in said
