"""Progress of a running job: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task
from rich.table import Column
from rich.text import Text

from jobs.terminal.figures import Figures, live_text, plain_line

PLAIN_EVERY_S = 15.0
"""Between two lines where the output is not a terminal."""


_BAR = 14
"""Columns of a terminal for the spinner, a bar of some length, and the spaces beside them."""


class ProgressDisplay:
    """Shows figures while it is entered: a live line, or where there is no terminal a plain one now
    and then.

    figures: what is to be shown by now; called from any thread.
    """

    def __init__(
        self,
        figures: Callable[[], Figures],
        console: Console,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._figures = figures
        self._console = console
        self._clock = clock
        self._live: Progress | None = None
        self._task = None
        self._last_line_s = clock()
        if console.is_terminal:
            self._live = Progress(
                SpinnerColumn(),
                BarColumn(bar_width=None),
                _Counts(figures, console),
                console=console,
                transient=True,
            )
            self._task = self._live.add_task("rendering", total=max(1, figures().evaluations))

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, *, at_once: bool = False) -> None:
        """Show the figures of now. at_once: without a terminal, too."""
        figures = self._figures()
        if self._live is not None and self._task is not None:
            total = max(1, figures.evaluations)
            self._live.update(self._task, completed=figures.evaluated, total=total)
        elif at_once or self._clock() - self._last_line_s >= PLAIN_EVERY_S:
            self._last_line_s = self._clock()
            with contextlib.suppress(OSError):  # nobody reads it any more, but the work goes on
                self._console.print(plain_line(figures), highlight=False)


class _Counts(ProgressColumn):
    """Counts beside a bar, as much of them as the terminal has room for."""

    def __init__(self, figures: Callable[[], Figures], console: Console) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._figures = figures
        self._console = console

    def render(self, task: Task) -> Text:
        return Text(live_text(self._figures(), self._console.width - _BAR))
