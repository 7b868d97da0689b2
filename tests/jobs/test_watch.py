"""Watching a job in the ledger."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from jobs.errors import LedgerError, NotFoundError
from jobs.ledger.base import JobState, NewJob
from jobs.ledger.memory import MemoryLedger
from jobs.watch import PATIENCE_S, watch


class Scene:
    """A ledger whose story goes on while the watcher sleeps."""

    def __init__(self, *story) -> None:
        self.now = 0.0
        self.ledger = MemoryLedger(lambda: self.now)
        self.ledger.create(NewJob("job", "job", "p" * 64, "out", "demo", [4, 8], evaluations=80))
        self.ledger.publish("job", 2)
        self.pipe = io.StringIO()
        self._story = iter(story)

    def sleep(self, seconds: float) -> None:
        self.now += 20.0
        next(self._story)(self)

    def watch(self):
        console = Console(file=self.pipe)
        return watch(self.ledger, "job", console, sleep=self.sleep, clock=lambda: self.now)


def render(shard, evaluated=40):
    def happen(scene):
        claim = scene.ledger.claim("job", shard, "w1")
        scene.ledger.heartbeat([claim.lease], [evaluated])
        scene.ledger.settle(claim.lease, claim.indices)
        scene.ledger.release(claim.lease)

    return happen


def become(state):
    return lambda scene: scene.ledger.set_state("job", state)


def test_it_tells_how_far_the_job_is_until_its_end():
    scene = Scene(render(0), render(1), become(JobState.DONE))
    ended = scene.watch()
    assert (ended.state, ended.done) == (JobState.DONE, 8)
    lines = scene.pipe.getvalue().splitlines()
    assert lines[0].startswith("4/8 images, 0.20 images/s, 40/80 steps, 0:20 left")
    assert lines[1].startswith("8/8 images")


def test_images_from_before_do_not_count_for_the_speed():
    scene = Scene(render(1), become(JobState.DONE))
    render(0)(scene)
    scene.watch()
    assert scene.pipe.getvalue().startswith("8/8 images, 0.20 images/s, 40/40 steps")


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
