"""Galleries of jobs that go on: in time, by one worker, never over the end of a job."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from jobs.errors import StoreError
from jobs.folder.layout import JobKeys
from jobs.folder.records import dump_lines
from jobs.ledger.memory.ledger import MemoryLedger
from jobs.ledger.types import JobState, NewJob
from jobs.report import REFRESH_S, LiveGallery
from jobs.storage import LocalStore
from tests.worker.reconcile.test_reconciler import Clock, a_record
from worker.reconcile.finalize import HOLD_S, finish_lock
from worker.reconcile.galleries import GalleryRefresher
from worker.reconcile.reconciler import Reconciler

KEYS = JobKeys("job")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(clock):
    ledger = MemoryLedger(clock, lease_s=6000.0)
    ledger.create(NewJob("job", "job", "p" * 64, "out", "demo", range(1, 6), evaluations=5))
    ledger.publish("job", 5)
    return ledger


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path)


class Refresher:
    """With rounds that wait for what they begin."""

    def __init__(self, ledger, store) -> None:
        self.ledger = ledger
        self.refresher = GalleryRefresher(ledger, lambda address: store, owner="w1")

    def round(self):
        self.refresher.round(self.ledger.jobs())
        self.refresher.wait()


@pytest.fixture
def refresher(ledger, store):
    return Refresher(ledger, store)


def settle(ledger, store, number):
    claim = ledger.claim("job", number, "w1")
    store.put(KEYS.records(number), dump_lines([a_record(number)]))
    assert ledger.settle(claim.lease, [number])
    ledger.release(claim.lease)


def shown(store):
    """How many pictures its gallery says that the job has."""
    if store.head(KEYS.index) is None:
        return None
    page = store.get(KEYS.index).decode()
    return next((n for n in range(6) if f"it has {n} of 5 pictures so far" in page), "all")


def test_every_minute_if_there_is_something_new(refresher, ledger, store, clock):
    refresher.round()
    settle(ledger, store, 0)
    refresher.round()
    assert shown(store) is None  # short jobs have theirs at the end
    clock.now += REFRESH_S
    refresher.round()
    assert shown(store) == 1
    settle(ledger, store, 1)
    clock.now += REFRESH_S - 1
    refresher.round()
    assert shown(store) == 1
    clock.now += 1
    refresher.round()
    assert shown(store) == 2
    store.delete(KEYS.index)
    clock.now += REFRESH_S
    refresher.round()
    assert shown(store) is None  # nothing is new
    assert ledger.lock(finish_lock("job"), "w2", HOLD_S)  # and the lock is free


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.PAUSED])
def test_jobs_that_do_not_go_on(refresher, ledger, store, clock, state):
    settle(ledger, store, 0)
    refresher.round()
    ledger.set_state("job", state)
    clock.now += REFRESH_S
    refresher.round()
    assert shown(store) == (1 if state is JobState.PAUSED else None)  # those may have news


def test_a_job_that_is_ended_meanwhile_is_left_to_that(refresher, ledger, store, clock):
    settle(ledger, store, 0)
    refresher.round()
    clock.now += REFRESH_S
    for owner in ("w2", "w1"):  # its own worker ends jobs in another thread
        assert ledger.lock(finish_lock("job"), owner, HOLD_S)
        refresher.round()
        assert shown(store) is None
        ledger.unlock(finish_lock("job"), owner)
        clock.now += REFRESH_S
    refresher.round()
    assert shown(store) == 1


def test_it_is_broken_off_once_the_job_is_settled(refresher, ledger, store, clock, monkeypatch):
    settle(ledger, store, 0)
    refresher.round()
    clock.now += REFRESH_S
    refresh = LiveGallery.refresh

    def late(gallery, *arguments, **options):
        for number in range(1, 5):
            settle(ledger, store, number)
        return refresh(gallery, *arguments, **options)

    monkeypatch.setattr(LiveGallery, "refresh", late)
    refresher.round()
    assert shown(store) is None
    assert ledger.lock(finish_lock("job"), "w2", HOLD_S)


def test_what_is_wrong_is_said_once_and_tried_again(ledger, store, clock, caplog):
    broken = [True]

    def open_store(address):
        if broken[0]:
            raise StoreError("the bucket is gone")
        return store

    refresher = Refresher(ledger, store)
    refresher.refresher = GalleryRefresher(ledger, open_store, owner="w1")
    settle(ledger, store, 0)
    for _ in range(3):
        refresher.round()
        clock.now += REFRESH_S
    assert caplog.text.count("has no gallery for now: the bucket is gone") == 1
    broken.clear()
    broken.append(False)
    refresher.round()
    assert shown(store) == 1


def test_the_reconciler_sees_to_it(ledger, store, clock):
    queue = SimpleNamespace(send=lambda model, shards: None, length=lambda model: 1)
    one = Reconciler(ledger, queue, lambda address: store, owner="w1", slots=1)
    settle(ledger, store, 0)
    for _ in range(2):
        one.round()
        clock.now += REFRESH_S
    one._galleries.wait()
    assert shown(store) == 1


def test_a_worker_that_stops_breaks_it_off(refresher, ledger, store, clock):
    settle(ledger, store, 0)
    refresher.round()
    clock.now += REFRESH_S
    refresher.refresher.stop()
    refresher.round()
    assert shown(store) is None
