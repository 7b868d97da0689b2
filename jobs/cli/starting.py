"""Subcommands for the first minutes: a manifest to begin with, and completion in a shell."""

from __future__ import annotations

import shlex
from importlib.resources import files
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from jobs.cli.options import json_option
from jobs.errors import InputError
from jobs.formatting import reason
from jobs.terminal.console import Terminal

SHELLS = ("bash", "zsh", "fish")
STARTER = "starter.yaml"


@click.command()
@click.argument(
    "manifest", metavar="[FILE]", default="manifest.yaml", type=click.Path(path_type=Path)
)
@json_option
@click.pass_obj
def init(terminal: Terminal, manifest: Path) -> None:
    """Write a manifest to begin with, in which comments say what else it may have. FILE is
    manifest.yaml unless given; one that is there already stays as it is.

    \b
    Example:
      sdbatch init shapes.yaml
    """
    text = files("jobs.examples").joinpath(STARTER).read_text(encoding="utf-8")
    try:
        with manifest.open("x", encoding="utf-8") as file:
            file.write(text.replace(STARTER, manifest.name))
    except FileExistsError:
        raise InputError(f"{manifest} is there already; name another file") from None
    except OSError as error:
        raise InputError(f"{manifest} cannot be written: {reason(error)}") from None
    if terminal.json:
        terminal.document({"file": str(manifest)})
    else:
        terminal.say(str(manifest))
        terminal.note([f"sdbatch run {shlex.quote(str(manifest))} renders it"])


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands and options.

    \b
    Example:
      sdbatch completion bash > ~/.local/share/bash-completion/completions/sdbatch
      sdbatch completion zsh > ~/.zfunc/_sdbatch
      sdbatch completion fish > ~/.config/fish/completions/sdbatch.fish
    """
    of_shell = get_completion_class(shell)
    assert of_shell is not None  # click has all three
    program = context.find_root()
    click.echo(of_shell(program.command, {}, "sdbatch", "_SDBATCH_COMPLETE").source())
