"""News for browsers, look by look, and what it costs the ledger."""

from __future__ import annotations

from collections import Counter

import pytest

from jobs.dashboard.feed import LOOKS_AT_ONCE, MOST_JOBS, MOST_SHOWN, NEWS_AT_ONCE, SLOWLY_S, Feed
from jobs.errors import LedgerError
from jobs.ledger.memory.ledger import MemoryLedger
from jobs.ledger.types import JobState, WorkerInfo
from tests.ledgers import Clock, failure, new_job, take


class CountingLedger(MemoryLedger):
    """Counts the calls that it gets, and may be away."""

    def __init__(self, clock):
        super().__init__(clock)
        self.calls: Counter[str] = Counter()
        self.away = False

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name in ("news", "statuses", "workers", "time_s", "status", "events", "states", "jobs"):
            self.calls[name] += 1
            if self.away:
                raise LedgerError("away")
        return found


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(clock):
    return CountingLedger(clock)


@pytest.fixture
def feed(ledger, clock):
    return Feed(ledger, clock=clock)


def told(messages, name):
    return [values for kind, values in messages if kind == name]


def test_what_was_before_is_no_news(ledger, feed):
    ledger.create(new_job())
    assert [name for name, _ in feed.look()] == ["workers"]


def test_images_land(ledger, feed):
    ledger.create(new_job())
    feed.look()
    ledger.settle(take(ledger, 1), [4, 6], [failure(5, "no memory")])
    messages = feed.look()
    (jobs,) = told(messages, "jobs")
    assert [(job["id"], job["done"], job["failed"]) for job in jobs] == [("job", 2, 1)]
    (pictures,) = told(messages, "pictures")
    assert [(p["job"], p["index"]) for p in pictures] == [("job", 4), ("job", 6)]
    (failures,) = told(messages, "failures")
    assert [(f["index"], f["reason"]) for f in failures] == [(5, "no memory")]
    assert feed.look() == []


def test_a_new_job_and_one_that_is_forgotten(ledger, feed):
    feed.look()
    ledger.create(new_job("a"))
    ledger.create(new_job("b"))
    ledger.forget("a")
    messages = feed.look()
    assert [job["id"] for job in told(messages, "jobs")[0]] == ["b"]
    assert told(messages, "gone") == [["a"]]


def test_a_job_that_is_rendered_is_told_without_events(ledger, feed, clock):
    """Steps move between two images, which may take minutes."""
    ledger.create(new_job())
    feed.look()
    lease = take(ledger, 0)
    feed.look()
    ledger.heartbeat([lease], [17])
    assert feed.look() == []
    clock.now_s += SLOWLY_S
    (jobs,) = told(feed.look(), "jobs")
    assert jobs[0]["evaluated"] == 17


def test_what_idle_jobs_cost(ledger, feed, clock):
    """The same few calls, whether there are none or a thousand of them."""

    def calls_of_a_minute():
        feed.look()
        ledger.calls.clear()
        for _ in range(120):
            clock.now_s += 0.5
            feed.look()
        return dict(ledger.calls)

    before = calls_of_a_minute()
    for number in range(1000):
        ledger.create(new_job(f"job-{number}"))
    for _ in range(LOOKS_AT_ONCE):
        feed.look()
    assert calls_of_a_minute() == before == {"news": 120, "workers": 30}


def test_many_jobs_that_change_at_once_are_told_over_several_looks(ledger, feed):
    feed.look()
    entered = [f"job-{number}" for number in range(MOST_JOBS + 50)]
    for job_id in entered:
        ledger.create(new_job(job_id))
    listed = [told(feed.look(), "jobs")[0] for _ in range(2)]
    assert [job["id"] for jobs in listed for job in jobs] == entered
    assert [len(jobs) for jobs in listed] == [MOST_JOBS, 50]


def test_a_flood_is_read_in_parts_and_only_its_end_is_told(ledger, feed):
    ledger.create(new_job(ends=[4000]))
    feed.look()
    lease = take(ledger, 0)
    for index in range(NEWS_AT_ONCE + 100):
        ledger.settle(lease, [index])
    (pictures,) = told(feed.look(), "pictures")
    assert [p["index"] for p in pictures] == list(range(1100 - MOST_SHOWN, 1100))


def test_odd_events_of_other_versions_are_passed_over(ledger, feed, clock):
    ledger.create(new_job())
    feed.look()
    job = ledger._jobs["job"]
    ledger._tell(job, "settled", images="x")
    ledger._tell(job, "settled")
    ledger._tell(job, "failed", index="-1", reason="x")
    ledger._tell(job, "failed")
    ledger._tell(job, "painted", colour="blue")
    assert [name for name, _ in feed.look()] == ["jobs"]


class TestAway:
    def test_it_is_said_once_and_so_is_its_return(self, ledger, feed):
        feed.look()
        ledger.away = True
        assert feed.look() == [("ledger", {"error": "away"})]
        assert feed.look() == []
        assert feed.away == "away"
        ledger.away = False
        assert feed.look()[0] == ("ledger", {"error": None})
        assert feed.away is None

    def test_events_that_count_from_anew_are_seen(self, ledger, clock):
        """A server that lost everything may have a clock that is behind."""
        feed = Feed(ledger, clock=clock)
        ledger.create(new_job())
        feed.look()
        ledger.away = True
        feed.look()
        ledger.away = False
        ledger._news.clear()
        clock.now_s -= 3600
        feed.look()
        ledger.create(new_job("new"))
        assert [job["id"] for job in told(feed.look(), "jobs")[0]] == ["new"]


def test_after_a_rest_it_begins_with_what_is_new(ledger, feed):
    ledger.create(new_job())
    feed.look()
    feed.rest()
    ledger.set_state("job", JobState.PAUSED)
    assert told(feed.look(), "jobs") == []
    ledger.set_state("job", JobState.ACTIVE)
    assert len(told(feed.look(), "jobs")) == 1


def test_workers_tell_their_speed(ledger, feed):
    ledger.worker_seen(WorkerInfo("w1", "box", 1, "cpu", "demo", 1, 0, "busy"), 600)
    ledger.worker_seen(
        WorkerInfo("w2", "box", 2, "cpu", "demo", 1, 9, "busy", images_per_s=1.5), 600
    )
    (workers,) = told(feed.look(), "workers")
    assert [worker["images_per_s"] for worker in workers] == [None, 1.5]
