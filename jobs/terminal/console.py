"""Output of commands: results to stdout, errors and progress to stderr, JSON where asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, cast

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from jobs.errors import ManifestError, ManifestWarning, Problem, Stop, exit_code
from jobs.formatting import counted
from jobs.terminal.streams import Unfailing
from jobs.terminal.tables import table_lines

SHOW_PROGRESS_AFTER_S = 1.0


class Terminal:
    """Output of one command. json: the command was called with --json."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self._warnings: list[dict[str, Any]] = []
        self.err = Console(
            file=cast(IO[str], Unfailing(sys.stderr)),
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=True,
        )

    def say(self, text: str) -> None:
        """A line of the result, for people."""
        click.echo(_printable(text))

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Lines of the result, their cells below each other; headers also where there are none."""
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        cells = [[_printable(cell).replace("\n", " ") for cell in row] for row in rows]
        for line in table_lines(headers, cells, width=width):
            click.echo(line)

    def document(self, values: dict[str, Any]) -> None:
        """The whole result, for programs; with the warnings, if there are any."""
        if self._warnings:
            values = {**values, "warnings": self._warnings}
        click.echo(json.dumps(values, indent=2))

    def warn(self, warnings: Iterable[ManifestWarning]) -> None:
        """Say what may not be meant; one line a kind. For programs, it is in the document."""
        for warning in warnings:
            if self.json:
                self._warnings.append(warning.to_json())
                continue
            first = warning.first
            times = f" ({warning.count:,} in all)" if warning.count > 1 else ""
            self.err.print(_problem_line(first, "warning: ", f"{first.message}{times}"))

    def error(self, error: Exception) -> None:
        """Say what went wrong; one line a problem."""
        problems = error.problems if isinstance(error, ManifestError) else []
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        if self.json:
            if problems:
                message = counted(len(problems), "problem")
            code = error.exit_code if isinstance(error, click.ClickException) else exit_code(error)
            listed = [dataclasses.asdict(problem) for problem in problems]
            self.document({"error": message, "exit_code": int(code), "problems": listed})
            return
        if not problems:
            label = ("", "") if isinstance(error, Stop) else ("error: ", "bold red")
            self.err.print(Text.assemble(label, _printable(message)))
            return
        for problem in problems:
            self.err.print(_problem_line(problem, "", problem.message))
        self.err.print(Text(counted(len(problems), "problem"), style="bold red"))

    def note(self, lines: Iterable[str]) -> None:
        """Say what a person may want to know beside the result; nothing for programs."""
        for line in () if self.json else lines:
            self.err.print(Text(_printable(line)))

    def status(self, text: str) -> contextlib.AbstractContextManager[object]:
        """Says what is being done while it is, on a terminal."""
        return self.err.status(text) if self.err.is_terminal else contextlib.nullcontext()

    @contextlib.contextmanager
    def counting(self, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Progress of something that may take long; gives the function to call with the count.

        Nothing is shown when stderr is not a terminal, nor for what takes less than a second.
        """
        if not self.err.is_terminal:
            yield lambda done: None
            return
        bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            console=self.err,
            transient=True,
        )
        task = bar.add_task(what, total=total)
        started = time.monotonic()

        def tick(done: int) -> None:
            if time.monotonic() - started > SHOW_PROGRESS_AFTER_S:
                bar.start()
            bar.update(task, completed=done)

        try:
            yield tick
        finally:
            bar.stop()


def _problem_line(problem: Problem, label: str, message: str) -> Text:
    """`file:line:column: path: message`; label: before the message."""
    line = Text(_printable(problem.place), style="bold")
    line.append(": ", style="not bold")
    if problem.path:
        line.append(problem.path, style="not bold cyan")
        line.append(": ", style="not bold")
    line.append(label, style="yellow")
    line.append(_printable(message), style="not bold")
    return line


def _printable(text: str) -> str:
    """Without control characters, which could do things to a terminal; file names may have them."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )
