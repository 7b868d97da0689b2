"""What a run says while it runs."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from jobs.task import Failure
from jobs.terminal.figures import duration, live_text, plain_line
from jobs.terminal.progress import PLAIN_EVERY_S
from worker.faults import Reason
from worker.progress import ProgressCounter, RunProgress

CONTROL = re.compile("\x1b\\[[^A-Za-z]*[A-Za-z]")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_rate_and_time_left_follow_the_evaluations():
    clock = Clock()
    counter = ProgressCounter(images=10, evaluations=100, clock=clock)
    assert counter.remaining_s is None
    clock.now = 20.0
    counter.add(rendered=3, evaluated=40)
    assert counter.images_per_s == pytest.approx(0.15)
    assert counter.remaining_s == pytest.approx(30.0)
    assert plain_line(counter.figures()) == "3/10 images, 0.15 images/s, 40/100 steps, 0:30 left"


def test_images_that_were_there_take_no_time():
    clock = Clock()
    counter = ProgressCounter(images=10, evaluations=100, clock=clock)
    clock.now = 10.0
    counter.add(reused=5, skip=50)
    counter.add(evaluated=25)
    assert counter.settled == 5
    assert counter.remaining_s == pytest.approx(10.0)


def test_a_pipe_gets_a_plain_line_now_and_then():
    clock, pipe = Clock(), io.StringIO()
    with RunProgress(2, 100, Console(file=pipe), clock=clock) as progress:
        for _ in range(20):
            clock.now += PLAIN_EVERY_S / 10
            progress.step()
        progress.failed(Failure(1, "b", "a ring", 0, "broke"), 30, Reason.OTHER)
    lines = pipe.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("0/2 images, 0.00 images/s, 10/100 steps, 2:15 left")
    assert lines[2] == "failed: image 1 (b): broke"
    assert "\x1b" not in pipe.getvalue()
    assert progress.counter.evaluations == 70


def test_a_terminal_gets_a_bar_that_goes_away():
    clock, screen = Clock(), io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with RunProgress(4, 8, console, clock=clock) as progress:
        clock.now = 2.0
        progress.step()
        progress.rendered(0, 1.0)
        progress.reused(1, evaluations=2)
    assert "2/4 images" in screen.getvalue()
    assert "step 1/6" in screen.getvalue()


@pytest.mark.parametrize(
    ("width", "said"),
    [
        (20, "123,456/1,000,000"),
        (40, "123,456/1,000,000"),
        (60, "123,456/1,000,000 images · 214:54:04 left"),
        (80, "123,456/1,000,000 images · 1.43/s · 214:54:04 left"),
        (
            200,
            "123,456/1,000,000 images · 1.43 images/s · step 5,123,456/51,000,000 · 214:54:04 left",
        ),
    ],
)
def test_the_live_line_is_one_line_on_any_terminal(width, said):
    clock, screen = Clock(), io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, color_system=None)
    with RunProgress(1_000_000, 51_000_000, console, clock=clock) as progress:
        clock.now = 86_400.0
        progress.counter.add(rendered=123_456, evaluated=5_123_456)
        progress.show()
    # A frame that takes several lines has line ends in it; after the last one the line is left.
    *frames, rest = [CONTROL.sub("", part) for part in screen.getvalue().split("\r")]
    frames[-1] = frames[-1].removesuffix("\n")
    assert rest == ""
    assert all("\n" not in frame for frame in frames)
    assert max(map(cell_len, frames)) <= width
    assert frames[-1].endswith(f" {said}")


def test_a_live_line_of_a_small_job_says_all_at_80_columns():
    clock = Clock()
    counter = ProgressCounter(images=1, evaluations=51, clock=clock)
    clock.now = 2.0
    counter.add(evaluated=10)
    assert live_text(counter.figures(), 80) == "0/1 image · 0.00 images/s · step 10/51 · 0:08 left"
    assert plain_line(counter.figures()) == "0/1 image, 0.00 images/s, 10/51 steps, 0:08 left"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3723, "1:02:03")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
