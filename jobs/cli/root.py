"""The `sdbatch` command: its subcommands, and `main`, which turns errors into exit codes.

A subcommand is imported when it is called, with all that it needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from keyword import iskeyword
from typing import Any

import click

from jobs.errors import ExitCode, InputError, Interrupted, SdbatchError, Stop, exit_code
from jobs.formatting import reason
from jobs.terminal.console import Terminal
from jobs.terminal.streams import escape_unencodable, open_closed, restart_in_utf8, silence

COMMANDS: dict[str, tuple[str | None, str]] = {
    "init": ("jobs.cli.starting", "Write a manifest to begin with."),
    "validate": ("jobs.cli.manifest", "Check manifests and every file they name."),
    "plan": ("jobs.cli.manifest", "Show what a job will cost, without rendering."),
    "run": (None, "Render a manifest here and now."),
    "import": ("jobs.cli.importing", "Make a manifest of pictures."),
    "schema": ("jobs.cli.manifest", "Print the manifest format as JSON Schema."),
    "submit": ("jobs.cli.submit", "Queue a manifest for the workers of its model."),
    "watch": ("jobs.cli.submit", "Follow a job until it ends."),
    "collect": ("jobs.cli.submit", "Copy the images of a job into a folder, each checked."),
    "grid": ("jobs.cli.grid", "Draw a job's images by what they differ in."),
    "verify": (None, "Compare a job's images with records, plan and model."),
    "show": ("jobs.cli.show", "Show how pictures were made."),
    "jobs": ("jobs.cli.manage", "List jobs, the latest first."),
    "status": ("jobs.cli.manage", "Show where a job stands."),
    "failures": ("jobs.cli.manage", "List the images of a job that failed, with reasons."),
    "pause": ("jobs.cli.manage", "Let a job rest; images being rendered are finished."),
    "unpause": ("jobs.cli.manage", "Let a paused job go on."),
    "cancel": ("jobs.cli.manage", "End a job; its finished images stay."),
    "retry": ("jobs.cli.manage", "Render the failed images of a job again."),
    "forget": ("jobs.cli.manage", "Take a job out of the ledger; its folder stays."),
    "resume": ("jobs.cli.manage", "Enter a job again from its folder."),
    "index": ("jobs.cli.index", "Note a store's pictures, so that later jobs take them."),
    "workers": ("jobs.cli.manage", "List workers: where they are and what they do."),
    "quota": ("jobs.cli.quota", "Limit the images that a submitter may have to do."),
    "dashboard": ("jobs.cli.dashboard", "Show jobs, workers and pictures live in a browser."),
    "doctor": ("jobs.cli.doctor", "Look at all that jobs need here."),
    "bench": (None, "Measure how fast this machine renders."),
    "worker": (None, "Render shards of jobs until told to stop."),
    "local": ("jobs.cli.local", "Run queue, store and workers on this machine."),
    "completion": ("jobs.cli.starting", "Print what makes a shell complete commands."),
}
"""Subcommands as help lists them: the module that has the function of that name, and a summary.
Those without a module are entry points of the group `sdbatch.commands`, of another package.
"""

EXIT_CODES = f"""\
Exit codes: {ExitCode.DONE} done, {ExitCode.UNEXPECTED} unexpected error, {ExitCode.BAD_INPUT} bad \
input, {ExitCode.SOME_FAILED} some images failed, {ExitCode.MODEL} model not loadable, \
{ExitCode.STORE} store not usable, {ExitCode.CONFLICT} folder of another job, \
{ExitCode.NOT_FOUND} not found, {ExitCode.CANCELLED} cancelled, \
{ExitCode.LEDGER} ledger not usable, {ExitCode.INTERRUPTED} interrupted."""


class _ReaderGoneError(Exception):
    """The reader of our output has seen enough, as `head` does."""


class CommandGroup(click.Group):
    """Subcommands that are imported when they are called."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _ = COMMANDS[name]
        function = f"{name}_" if iskeyword(name) else name
        command: click.Command = (
            _entry_point(name) if module is None else getattr(import_module(module), function)
        )
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BrokenPipeError:  # click would end with code 1
            raise _ReaderGoneError from None


def _entry_point(name: str) -> Any:
    for found in metadata.entry_points(group="sdbatch.commands", name=name):
        return found.load()
    raise InputError(f"{name} is not installed with this copy of sdbatch: pip install sdbatch")


def _say_version(context: click.Context, option: click.Parameter, given: bool) -> None:
    if given and not context.resilient_parsing:
        try:
            version = metadata.version("sdbatch")
        except metadata.PackageNotFoundError:
            version = "not installed"  # run from a source tree
        click.echo(f"sdbatch, version {version}")
        context.exit()


@click.group(
    cls=CommandGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_say_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Render batches of images with Stable Diffusion v1 from YAML manifests.

    \b
    Example:
      sdbatch plan job.yaml
      sdbatch run job.yaml
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code. Here, and only here, exceptions become exit codes."""
    if arguments is None:  # of a process of its own
        restart_in_utf8()
        arguments = sys.argv[1:]
    open_closed()
    escape_unencodable()
    terminal = Terminal(json="--json" in arguments)
    try:
        result = cli.main(args=arguments, prog_name="sdbatch", standalone_mode=False, obj=terminal)
        sys.stdout.flush()
    except (BrokenPipeError, _ReaderGoneError):
        silence(sys.stdout)
        return ExitCode.DONE
    except click.ClickException as error:
        _tell(terminal, error)
        return error.exit_code
    except click.Abort:
        _tell(terminal, Interrupted("interrupted"))
        return ExitCode.INTERRUPTED
    except (SdbatchError, Stop) as error:
        _tell(terminal, error)
        return exit_code(error)
    except OSError as error:  # of stdout, as everything else is turned into our own errors
        silence(sys.stdout)
        message = f"the output cannot be written: {reason(error)}"
        Terminal(json=False).error(SdbatchError(message))
        return ExitCode.UNEXPECTED
    except Exception as error:
        from jobs.settings import debugging

        if debugging(os.environ):
            raise
        name = type(error).__name__
        message = f"unexpected {name}: {error} (SDBATCH_DEBUG=1 shows where)"
        _tell(terminal, SdbatchError(message))
        return ExitCode.UNEXPECTED
    return result if isinstance(result, int) else ExitCode.DONE


def _tell(terminal: Terminal, error: Exception) -> None:
    """Say what went wrong, if somebody still reads it: the exit code tells it, too."""
    try:
        if isinstance(error, click.ClickException) and not terminal.json:
            error.show(terminal.err.file)
        else:
            terminal.error(error)
        sys.stdout.flush()
    except OSError:
        silence(sys.stdout)
