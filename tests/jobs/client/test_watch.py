"""Watching a job in the ledger."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from jobs.client.watch import PATIENCE_S, watch
from jobs.errors import LedgerError, NotFoundError
from jobs.ledger.memory.ledger import MemoryLedger
from jobs.ledger.types import JobState, ModelShards, NewJob, WorkerInfo
from jobs.terminal.figures import figures_of


class Scene:
    """A ledger whose story goes on while the watcher sleeps."""

    def __init__(self, *story) -> None:
        self.now = 0.0
        self.ledger = MemoryLedger(lambda: self.now)
        self.ledger.create(NewJob("job", "job", "p" * 64, "out", "demo", [4, 8], evaluations=80))
        self.ledger.publish("job", 2)
        self.pipe = io.StringIO()
        self._story = iter(story)
        self.add_worker("demo")

    def add_worker(self, model: str) -> None:
        info = WorkerInfo(f"w-{model}", "host", 1, "cpu", model, 0, 0, "idle")
        self.ledger.worker_seen(info, 1e9)

    def sleep(self, seconds: float) -> None:
        self.now += 20.0
        next(self._story)(self)

    def watch(self):
        console = Console(file=self.pipe, soft_wrap=True)
        return watch(self.ledger, "job", console, sleep=self.sleep, clock=lambda: self.now)

    @property
    def lines(self):
        return self.pipe.getvalue().splitlines()


def claim(shard):
    def happen(scene):
        scene.lease = scene.ledger.claim("job", shard, "w1").lease

    return happen


def render(shard, evaluated=40):
    """In 20 s."""

    def happen(scene):
        claim = scene.ledger.claim("job", shard, "w1")
        scene.now += 20.0
        scene.ledger.heartbeat([claim.lease], [evaluated])
        scene.ledger.settle(claim.lease, claim.indices)
        scene.ledger.release(claim.lease)

    return happen


def finish(scene):
    """The shard that was claimed."""
    scene.ledger.heartbeat([scene.lease], [40])
    first = 4 * scene.lease.shard
    scene.ledger.settle(scene.lease, range(first, first + 4))
    scene.ledger.release(scene.lease)


def die(scene):
    """After most of the steps of the shard that was claimed."""
    scene.ledger.heartbeat([scene.lease], [36])
    scene.now += 100.0
    assert scene.ledger.expire()


def become(state):
    return lambda scene: scene.ledger.set_state("job", state)


def test_it_tells_how_far_the_job_is_until_its_end():
    scene = Scene(render(0), claim(1), lambda scene: None, finish, become(JobState.DONE))
    ended = scene.watch()
    assert (ended.state, ended.done) == (JobState.DONE, 8)
    assert scene.lines == [
        "4/8 images, 40/80 steps, waiting for a worker",
        "4/8 images, 0.20 images/s, 40/80 steps, 0:20 left",
        "4/8 images, 0.20 images/s, 40/80 steps, 0:20 left",
        "8/8 images, 80/80 steps, its gallery is being made",
    ]


def test_all_who_watch_see_the_same_whenever_they_began():
    scene = Scene(render(0), claim(1), lambda scene: None)
    with pytest.raises(StopIteration):
        scene.watch()
    before, scene.pipe, scene._story = scene.lines[-1], io.StringIO(), iter([lambda scene: None])
    with pytest.raises(StopIteration):
        scene.watch()
    assert scene.lines == [before] == ["4/8 images, 0.20 images/s, 40/80 steps, 0:20 left"]


def test_a_worker_that_dies_takes_no_count_back_or_over_its_total():
    """Two die after most of their steps, which are made again."""
    scene = Scene(render(0), claim(1), die, claim(1), die, claim(1), finish, become(JobState.DONE))
    scene.watch()
    steps = [int(re.search(r"(\d+)/80 steps", line)[1]) for line in scene.lines]
    assert steps == sorted(steps)
    assert steps[-1] == 80
    assert max(steps[:-1]) == 79


def test_a_job_that_is_paused_is_said_to_be():
    scene = Scene(
        become(JobState.PAUSED),
        become(JobState.ACTIVE),
        render(0),
        render(1),
        become(JobState.DONE),
    )
    scene.watch()
    assert scene.lines[:2] == [
        "0/8 images, 0/80 steps, paused",
        "0/8 images, 0/80 steps, waiting for a worker",
    ]
    paused = Scene(lambda scene: None, become(JobState.CANCELLED))
    paused.ledger.set_state("job", JobState.PAUSED)
    paused.watch()
    assert paused.lines[0] == "0/8 images, 0/80 steps, paused"


def test_it_says_once_that_no_worker_has_the_model():
    scene = Scene(
        lambda scene: None,
        lambda scene: scene.add_worker("demo"),
        render(0),
        become(JobState.CANCELLED),
    )
    scene.ledger.worker_gone("w-demo")
    scene.add_worker("v1")
    scene.watch()
    none = "no worker has model demo; workers have v1 (1); sdbatch worker --model demo starts one"
    assert [line for line in scene.lines if "no worker" in line] == [none]


def test_it_says_so_of_each_model():
    scene = Scene(
        lambda scene: scene.add_worker("a"),
        lambda scene: scene.add_worker("b"),
        become(JobState.CANCELLED),
    )
    scene.ledger.forget("job")
    models = (ModelShards("a", 1, 4), ModelShards("b", 1, 4))
    scene.ledger.create(NewJob("job", "job", "p" * 64, "out", "a, b", [4, 8], 80, models=models))
    scene.watch()
    said = [line.partition(";")[0] for line in scene.lines if "no worker" in line]
    assert said == ["no worker has model a", "no worker has model b"]


def test_speed_is_of_the_time_in_which_the_job_was_rendered():
    """Not of that in which it was paused, or images were there already."""
    scene = Scene()
    render(0)(scene)
    become(JobState.PAUSED)(scene)
    scene.now += 10_000.0
    become(JobState.ACTIVE)(scene)
    claim(1)(scene)
    assert figures_of(scene.ledger.status("job")).images_per_s == pytest.approx(0.2)
    there = MemoryLedger(lambda: scene.now)
    there.create(NewJob("job", "job", "p" * 64, "out", "demo", [4, 8], evaluations=80), done=[0, 1])
    scene.ledger = there
    claim(0)(scene)
    scene.now += 20.0
    there.heartbeat([scene.lease], [10])
    figures = figures_of(there.status("job"))
    assert (figures.settled, figures.evaluated) == (2, 20)
    assert figures.images_per_s == pytest.approx(0.05)
    assert figures.remaining_s == pytest.approx(120.0)


def test_it_says_why_a_job_does_not_move_on_once_each_time():
    def fail(error):
        return lambda scene: scene.ledger.note_error("job", error)

    away = "w1: out/job has no plan"
    story = (fail(away), fail(away), fail("[red]no rights"), render(0), fail(away), render(1))
    scene = Scene(*story, become(JobState.DONE))
    scene.watch()
    told = [line for line in scene.pipe.getvalue().splitlines() if line.startswith("last error")]
    assert told == [f"last error: {away}", "last error: [red]no rights", f"last error: {away}"]


def test_cancelled_jobs_end_too():
    assert Scene(become(JobState.CANCELLED)).watch().state is JobState.CANCELLED


def test_a_forgotten_job_is_not_watched_for_ever():
    with pytest.raises(NotFoundError):
        Scene(lambda scene: scene.ledger.forget("job")).watch()


def test_a_short_absence_of_the_ledger_is_sat_out(monkeypatch):
    def away(scene):
        def status(job_id):
            raise LedgerError("away")

        monkeypatch.setattr(scene.ledger, "status", status)

    def back(scene):
        monkeypatch.undo()
        scene.ledger.set_state("job", JobState.CANCELLED)

    assert Scene(away, back).watch().state is JobState.CANCELLED
    for_ever = [away] + [lambda scene: None] * int(PATIENCE_S)
    with pytest.raises(LedgerError, match="away"):
        Scene(*for_ever).watch()
