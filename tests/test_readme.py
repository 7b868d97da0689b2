"""The README's commands, outputs and code are what really happens."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml
from PIL import Image

from jobs.cli.root import main
from jobs.errors import ExitCode
from jobs.manifest.load import load_manifest
from tests.commands import COMMANDS
from worker.run import RunSummary
from worker.run_command import summary_lines

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

BAD = """\
version: 1
defaults: {sampelr: plms, steps: 0}
prompts:
  - a cat
  - prompt: a dog
    guidance: high
"""


def blocks(language: str, page: str = README) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [body for tag, body in fences if tag == language]


def sessions() -> dict[str, str]:
    """Command -> output, of the blocks that show a prompt, in the README and in `docs`."""
    found = {}
    pages = [README, *(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))]
    for block in (block for page in pages for block in blocks("", page)):
        if block.startswith("$ "):
            command, _, output = block[2:].partition("\n")
            found[command] = output
    return found


def mentioned() -> set[str]:
    """Every command line of ours in the README."""
    lines = re.findall(r"^(?:\$ )?(sdbatch [^\n#]*)", README, re.MULTILINE)
    return {line.strip() for line in lines + re.findall(r"`(sdbatch [^`]+)`", README)}


def check_command(line: str) -> None:
    """That a command line names a command, options and files that there are."""
    _, name, *words = shlex.split(line)
    command = COMMANDS[name]
    options = {option for p in command.params if isinstance(p, click.Option) for option in p.opts}
    assert {word for word in words if word.startswith("--")} <= options
    for word in words:
        if word.startswith("jobs/"):
            assert (ROOT / word).exists()


@pytest.mark.parametrize("line", sorted(mentioned()))
def test_commands_and_options_exist(line):
    check_command(line)


def test_every_command_is_mentioned():
    assert {line.split()[1] for line in mentioned()} == set(COMMANDS)


@pytest.mark.parametrize("command", sessions())
def test_shown_output_is_real(command, capsys, monkeypatch, tmp_path):
    """Up to trailing white space, in a store without jobs, by which a plan would go."""
    _, *words = shlex.split(command)
    monkeypatch.setenv("SDBATCH_STORE", str(tmp_path / "out"))
    if words[1] == "bad.yaml":
        (tmp_path / "bad.yaml").write_text(BAD)
        monkeypatch.chdir(tmp_path)
    else:
        monkeypatch.chdir(ROOT)
    main(words)
    said = capsys.readouterr()
    assert (said.out + said.err).split() == sessions()[command].split()


def test_the_end_of_the_demo_is_as_shown():
    """But for the time that it took."""
    (shown,) = [block for block in blocks("") if "images rendered in" in block]
    job = load_manifest(ROOT / "jobs/examples/quickstart.yaml").job_id()
    seconds, speed = re.search(r"rendered in 0:(\d\d) \((.*?) images/s\)", shown).groups()
    render_s = 12 / float(speed)
    assert int(render_s) == int(seconds)
    summary = RunSummary(job, f"out/{job}", 12, 12, 0, 0, load_s=1.0, render_s=render_s)
    assert shown.splitlines() == list(summary_lines(summary))


def test_manifest_shown_is_valid(tmp_path, capsys):
    (manifest,) = blocks("yaml")
    (tmp_path / "shapes.yaml").write_text(manifest)
    (tmp_path / "photos").mkdir()
    example = ROOT / "jobs/examples/photos/red-circle-on-blue.png"
    (tmp_path / "photos/ring.png").write_bytes(example.read_bytes())
    (tmp_path / "prompts.csv").write_text("prompt,seed\na white cross,4\n")
    assert main(["validate", str(tmp_path / "shapes.yaml")]) == ExitCode.DONE
    assert yaml.safe_load(manifest)["version"] == 1
    assert "24 images" in capsys.readouterr().out


def test_exit_codes_are_all_listed():
    listed = re.search(r"Exit codes: (.*?)\n\n", README, re.DOTALL)[1]
    assert {int(code) for code in re.findall(r"\b\d+\b", listed)} == {int(c) for c in ExitCode}


def test_jobs_from_python(capsys, tmp_path, monkeypatch):
    code, _ = blocks("python")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    size = (128, 128)
    assert capsys.readouterr().out == f"1 {size}\n2 {size}\n3 {size}\nTrue\n"


def test_the_renderer_from_python(capsys, tmp_path, monkeypatch):
    _, code = blocks("python")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.endswith("31/31\n(128, 128, 3)\n")
    with Image.open("star.png") as star:
        assert (star.mode, star.size) == ("RGB", (128, 128))
        assert len(star.getcolors(128 * 128)) > 2
