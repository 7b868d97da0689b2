"""What a running job tells a person: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
)
from rich.table import Column
from rich.text import Text

from jobs.figures import Figures
from jobs.formatting import counted
from jobs.records import Failure

PLAIN_EVERY_S = 15.0
"""Between two lines where the output is not a terminal."""


_BAR = 14
"""Columns of a terminal for the spinner, a bar of some length, and the spaces beside them."""


class Meter:
    """Counts images and evaluations and says how fast they come. Safe to use from any thread."""

    def __init__(self, images: int, evaluations: int, clock: Callable[[], float]) -> None:
        self.images = images
        self.evaluations = evaluations
        self.rendered = self.reused = self.failed = self.evaluated = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._started = clock()

    def add(
        self,
        *,
        rendered: int = 0,
        reused: int = 0,
        failed: int = 0,
        evaluated: int = 0,
        skip: int = 0,
    ) -> None:
        """skip: evaluations that will not be needed after all."""
        with self._lock:
            self.rendered += rendered
            self.reused += reused
            self.failed += failed
            self.evaluated += evaluated
            self.evaluations -= skip

    @property
    def settled(self) -> int:
        """Images that need no more work, failed ones included."""
        return self.rendered + self.reused + self.failed

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._started

    @property
    def images_per_s(self) -> float:
        return self.rendered / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """By the evaluations so far; None before the first."""
        if not self.evaluated:
            return None
        return self.elapsed_s / self.evaluated * max(0, self.evaluations - self.evaluated)

    def figures(self) -> Figures:
        return Figures(
            images=self.images,
            settled=self.settled,
            evaluations=self.evaluations,
            evaluated=self.evaluated,
            images_per_s=self.images_per_s,
            remaining_s=self.remaining_s,
        )


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
        """What the figures are by now. at_once: without a terminal, too."""
        figures = self._figures()
        if self._live is not None and self._task is not None:
            total = max(1, figures.evaluations)
            self._live.update(self._task, completed=figures.evaluated, total=total)
        elif at_once or self._clock() - self._last_line_s >= PLAIN_EVERY_S:
            self._last_line_s = self._clock()
            with contextlib.suppress(OSError):  # nobody reads it any more, but the work goes on
                self._console.print(plain_line(figures), highlight=False)


class RunProgress(ProgressDisplay):
    """Shows a job that this process renders: quiet unless there is something to wait for.

    step, rendered, reused and failed are called as things happen, from any thread.
    """

    def __init__(
        self,
        images: int,
        evaluations: int,
        console: Console,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.meter = Meter(images, evaluations, clock)
        super().__init__(self.meter.figures, console, clock=clock)

    def step(self) -> None:
        """One evaluation of one image."""
        self.meter.add(evaluated=1)
        self.show()

    def rendered(self, index: int) -> None:
        self.meter.add(rendered=1)
        self.show()

    def reused(self, index: int, evaluations: int) -> None:
        """An image that was there already; its evaluations will not be needed."""
        self.meter.add(reused=1, skip=evaluations)
        self.show()

    def failed(self, failure: Failure, evaluations: int) -> None:
        """An image that cannot be made; its remaining evaluations will not be needed."""
        self.meter.add(failed=1, skip=evaluations)
        said = f"failed: image {failure.index} ({failure.name}): {failure.reason}"
        with contextlib.suppress(OSError):
            self._console.print(Text(said, style="red"))
        self.show()


class _Counts(ProgressColumn):
    """What is done, as much of it as the terminal has room for beside a bar."""

    def __init__(self, figures: Callable[[], Figures], console: Console) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._figures = figures
        self._console = console

    def render(self, task: Task) -> Text:
        return Text(live_text(self._figures(), self._console.width - _BAR))


def live_text(figures: Figures, room: int) -> str:
    """`12/40 images · 1.30 images/s · step 620/2040 · 0:21 left`, or less of it: at most `room`
    characters, but always the images.
    """
    images = f"{figures.settled:,}/{counted(figures.images, 'image')}"
    step = f"step {figures.evaluated:,}/{figures.evaluations:,}"
    rate, rate_in_short, left = [], [], []
    if figures.rests is not None:
        rate = rate_in_short = [figures.rests]
    elif figures.images_per_s is not None:
        rate = [f"{figures.images_per_s:.2f} images/s"]
        rate_in_short = [f"{figures.images_per_s:.2f}/s"]
    if figures.remaining_s is not None:
        left = [f"{duration(figures.remaining_s)} left"]
    choices = (
        [images, *rate, step, *left],
        [images, *rate_in_short, step, *left],
        [images, *rate_in_short, *left],
        [images, *left],
    )
    texts = (" · ".join(parts) for parts in choices)
    shortest = f"{figures.settled:,}/{figures.images:,}"
    return next((text for text in texts if len(text) <= room), shortest)


def plain_line(figures: Figures) -> str:
    """For logs: `12/40 images, 1.30 images/s, 620/2040 steps, 0:21 left`."""
    parts = [f"{figures.settled:,}/{counted(figures.images, 'image')}"]
    if figures.images_per_s is not None:
        parts.append(f"{figures.images_per_s:.2f} images/s")
    parts.append(f"{figures.evaluated:,}/{counted(figures.evaluations, 'step')}")
    if figures.remaining_s is not None:
        parts.append(f"{duration(figures.remaining_s)} left")
    if figures.rests is not None:
        parts.append(figures.rests)
    return ", ".join(parts)


def speed_text(figures: Figures) -> str:
    """`1.30 images/s, 0:21 left`."""
    parts = [] if figures.images_per_s is None else [f"{figures.images_per_s:.2f} images/s"]
    if figures.remaining_s is not None:
        parts.append(f"{duration(figures.remaining_s)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as `1:02:03`; under an hour as `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
