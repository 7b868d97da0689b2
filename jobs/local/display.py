"""Display of `sdbatch local`: each part as it becomes ready, then where everything is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.text import Text

from jobs.formatting import counted
from jobs.terminal.console import Terminal


@dataclass(frozen=True)
class Summary:
    """Addresses of a cluster that is ready. redis: without its password. dashboard: with the token
    by which jobs can be steered; None where there is no page.
    """

    redis: str
    store: str
    endpoint: str
    data: str
    logs: str
    workers: int
    model: str
    dashboard: str | None


class Display:
    """Progress and warnings go to stderr; in a pipe, only the warnings."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._status = terminal.err.status("") if terminal.err.is_terminal else None

    def doing(self, text: str) -> None:
        """Shown until something else is being done, or `idle`."""
        if self._status is not None:
            self._status.update(text)
            self._status.start()

    def idle(self) -> None:
        if self._status is not None:
            self._status.stop()

    def done(self, part: str, what: str) -> None:
        """A part is ready or has ended."""
        if self._status is not None:
            self._terminal.err.print(Text.assemble(("✓ ", "green"), f"{part:10} ", (what, "dim")))

    def warn(self, text: str) -> None:
        """Something went wrong, and the cluster goes on."""
        self._terminal.err.print(Text.assemble(("warning: ", "bold yellow"), text))

    def ready(self, summary: Summary, *, needs_folder: bool) -> None:
        """needs_folder: other commands would look for the cluster in another folder."""
        self.idle()
        if self._terminal.json:
            click.echo(json.dumps(asdict(summary)))
            return
        if self._status is not None:
            self._terminal.err.print()
        for line in _lines(summary, needs_folder=needs_folder):
            self._terminal.say(line)


def _lines(summary: Summary, *, needs_folder: bool) -> Iterator[str]:
    yield f"cluster   {counted(summary.workers, 'worker')} with model {summary.model}"
    yield f"redis     {summary.redis}"
    yield f"store     {summary.store}"
    yield f"endpoint  {summary.endpoint}"
    yield f"data      {summary.data}"
    yield f"logs      {summary.logs}"
    if summary.dashboard is not None:
        yield f"page      {summary.dashboard}"
    prefix = f"SDBATCH_LOCAL={shlex.quote(summary.data)} " if needs_folder else ""
    yield ""
    yield f"submit with: {prefix}sdbatch submit shapes.yaml"
    yield "Ctrl-C ends it; jobs and pictures are kept"


def same_folder(one: Path, other: Path | None) -> bool:
    return other is not None and one.resolve() == other.resolve()
