"""Commands of `sdbatch` as a shell sees them, without a new process for each."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

import click

from jobs.cli.root import cli, main


def _commands() -> dict[str, click.Command]:
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    assert None not in found.values()
    return found


COMMANDS = _commands()
"""Every subcommand, imported."""


def run_command(
    arguments: Sequence[str], environ: Mapping[str, str], folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Exit code, stdout and stderr of a command with these variables, in that folder.

    A process of its own would spend a second on imports, several if it renders. What is about
    processes (signals, terminals, workers) starts one.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, environ, clear=True),
        contextlib.chdir(folder or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main(list(arguments))
    return subprocess.CompletedProcess(list(arguments), int(code), out.getvalue(), err.getvalue())
