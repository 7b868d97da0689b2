"""What a running job tells a person: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

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

    def at(self, *, rendered: int, reused: int, failed: int, evaluated: int) -> None:
        """Takes counts from elsewhere."""
        with self._lock:
            self.rendered, self.reused = rendered, reused
            self.failed, self.evaluated = failed, evaluated

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


class RunProgress:
    """Shows a job's progress while it is entered: quiet unless there is something to wait for.

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
        self._console = console
        self._live: Progress | None = None
        self._task = None
        self._last_line_s = 0.0
        if console.is_terminal:
            self._live = Progress(
                SpinnerColumn(),
                BarColumn(bar_width=None),
                _Counts(self.meter, console),
                console=console,
                transient=True,
            )
            self._task = self._live.add_task("rendering", total=max(1, evaluations))

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

    def step(self) -> None:
        """One evaluation of one image."""
        self.meter.add(evaluated=1)
        self._show()

    def rendered(self, index: int) -> None:
        self.meter.add(rendered=1)
        self._show()

    def reused(self, index: int, evaluations: int) -> None:
        """An image that was there already; its evaluations will not be needed."""
        self.meter.add(reused=1, skip=evaluations)
        self._show()

    def failed(self, failure: Failure, evaluations: int) -> None:
        """An image that cannot be made; its remaining evaluations will not be needed."""
        self.meter.add(failed=1, skip=evaluations)
        said = f"failed: image {failure.index} ({failure.name}): {failure.reason}"
        self._console.print(Text(said, style="red"))
        self._show()

    def at(
        self, *, rendered: int = 0, reused: int = 0, failed: int = 0, evaluated: int = 0
    ) -> None:
        """Where a job stands that others render. reused: images from before it was watched."""
        self.meter.at(rendered=rendered, reused=reused, failed=failed, evaluated=evaluated)
        self._show()

    def _show(self) -> None:
        meter = self.meter
        if self._live is not None and self._task is not None:
            self._live.update(
                self._task, completed=meter.evaluated, total=max(1, meter.evaluations)
            )
            return
        if meter.elapsed_s - self._last_line_s >= PLAIN_EVERY_S:
            self._last_line_s = meter.elapsed_s
            self._console.print(plain_line(meter), highlight=False)


class _Counts(ProgressColumn):
    """What is done, as much of it as the terminal has room for beside a bar."""

    def __init__(self, meter: Meter, console: Console) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._meter = meter
        self._console = console

    def render(self, task: Task) -> Text:
        return Text(live_text(self._meter, self._console.width - _BAR))


def live_text(meter: Meter, room: int) -> str:
    """`12/40 images · 1.30 images/s · step 620/2040 · 0:21 left`, or less of it: at most `room`
    characters, but always the images.
    """
    images = f"{meter.settled:,}/{counted(meter.images, 'image')}"
    rate = f"{meter.images_per_s:.2f}"
    step = f"step {meter.evaluated:,}/{meter.evaluations:,}"
    left = [] if meter.remaining_s is None else [f"{duration(meter.remaining_s)} left"]
    choices = (
        [images, f"{rate} images/s", step, *left],
        [images, f"{rate}/s", step, *left],
        [images, f"{rate}/s", *left],
        [images, *left],
    )
    texts = (" · ".join(parts) for parts in choices)
    shortest = f"{meter.settled:,}/{meter.images:,}"
    return next((text for text in texts if len(text) <= room), shortest)


def plain_line(meter: Meter) -> str:
    """For logs: `12/40 images, 1.30 images/s, 620/2040 steps, 0:21 left`."""
    parts = [f"{meter.settled:,}/{counted(meter.images, 'image')}"]
    parts.append(f"{meter.images_per_s:.2f} images/s")
    parts.append(f"{meter.evaluated:,}/{counted(meter.evaluations, 'step')}")
    if meter.remaining_s is not None:
        parts.append(f"{duration(meter.remaining_s)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as `1:02:03`; under an hour as `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
