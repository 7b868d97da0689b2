"""The command from outside: as `python -m jobs`, and as a shell completes it."""

from __future__ import annotations

import runpy
import sys

import pytest

from jobs.cli.root import main
from tests.commands import COMMANDS

COMPLETE = "_SDBATCH_COMPLETE"  # click makes it of the command's name


def test_the_package_runs_as_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jobs/__main__.py", "plan", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("jobs", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("Usage: sdbatch plan ")


def test_the_package_ends_with_the_commands_code(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["jobs/__main__.py", "validate", str(tmp_path / "no.yaml")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("jobs", run_name="__main__")
    assert ended.value.code == 2
    assert "no.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["zsh", "fish"])  # for bash, click asks the machine's own bash
def test_a_shell_gets_its_script(shell, monkeypatch, capsys):
    monkeypatch.setenv(COMPLETE, f"{shell}_source")
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    script = capsys.readouterr().out
    assert f"{COMPLETE}={shell}_complete" in script
    assert "sdbatch" in script


@pytest.mark.parametrize(
    ("typed", "word", "offered"),
    [
        ("sdbatch ", 1, set(COMMANDS)),
        ("sdbatch su", 1, {"submit"}),
        ("sdbatch run --dt", 2, {"--dtype"}),
        ("sdbatch run --dtype b", 3, {"bfloat16"}),
    ],
)
def test_words_are_completed(typed, word, offered, monkeypatch, capsys):
    monkeypatch.setenv(COMPLETE, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(word))
    with pytest.raises(SystemExit):
        main([])
    said = capsys.readouterr().out.split()
    assert {line.removeprefix("plain,") for line in said} == offered
