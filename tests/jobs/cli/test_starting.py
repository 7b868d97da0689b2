"""`sdbatch init` and `completion`: what somebody new runs first."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.resources import files

import pytest

from jobs.cli.starting import SHELLS
from tests.commands import run_command

STARTER = files("jobs.examples").joinpath("starter.yaml").read_text(encoding="utf-8")


def test_the_first_manifest_is_a_job(tmp_path):
    done = run_command(["init"], {}, tmp_path)
    assert (done.returncode, done.stdout) == (0, "manifest.yaml\n")
    assert "sdbatch run manifest.yaml" in done.stderr
    planned = run_command(["plan", "manifest.yaml", "--json"], {}, tmp_path)
    assert json.loads(planned.stdout)["images"] == 4
    assert json.loads(run_command(["init", "b.yaml", "--json"], {}, tmp_path).stdout) == {
        "file": "b.yaml"
    }


def test_all_that_it_offers_in_comments_is_right(tmp_path):
    """Each commented line without its mark, with the files that it names there."""
    whole = re.sub(r"^( *)# (?=(- |  )?[a-z_ -]+:)", r"\1", STARTER, flags=re.MULTILINE)
    assert "#" not in "".join(line[:3] for line in whole.split("version: 1")[1].splitlines())
    (tmp_path / "prompts.txt").write_text("a red ring\n")
    examples = files("jobs.examples")
    for inside, source in (
        ("photos/ring.png", "photos/red-circle-on-blue.png"),
        ("loras/outlines.safetensors", "loras/hollow.safetensors"),
    ):
        (tmp_path / inside).parent.mkdir(exist_ok=True)
        (tmp_path / inside).write_bytes(examples.joinpath(source).read_bytes())
    (tmp_path / "whole.yaml").write_text(whole)
    planned = run_command(["plan", "whole.yaml", "--json"], {}, tmp_path)
    assert planned.returncode == 0, planned.stdout
    assert json.loads(planned.stdout)["images"] == 4 * (2 + 2 + 2 + 2 + 2)


def test_what_is_there_stays(tmp_path):
    (tmp_path / "manifest.yaml").write_text("mine")
    done = run_command(["init"], {}, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "manifest.yaml is there already; name another file" in done.stderr
    assert (tmp_path / "manifest.yaml").read_text() == "mine"
    done = run_command(["init", "no/such/folder.yaml"], {}, tmp_path)
    assert done.returncode == 2
    assert "no/such/folder.yaml cannot be written: no such file" in done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_is_for_the_shell(shell):
    done = run_command(["completion", shell], {"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0
    assert "_SDBATCH_COMPLETE" in done.stdout
    assert run_command(["completion", "csh"], {}).returncode == 2


def test_bash_completes_commands_and_options(tmp_path):
    """The script that is printed, in a real shell."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    script = run_command(["completion", "bash"], {"PATH": "/usr/bin:/bin"}).stdout
    program = tmp_path / "sdbatch"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m jobs "$@"\n')
    program.chmod(0o755)
    (tmp_path / "completion.sh").write_text(script)
    ask = (
        "source completion.sh; COMP_WORDS=(./sdbatch {words}); COMP_CWORD={at};"
        ' _sdbatch_completion ./sdbatch; echo "${{COMPREPLY[@]}}"'
    )
    for words, at, wanted in (("pl", 1, "plan"), ("plan --al", 2, "--allow-outside")):
        done = subprocess.run(
            ["bash", "-c", ask.format(words=words, at=at)],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(files("jobs").joinpath(".."))},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout.split() == [wanted], done.stderr
