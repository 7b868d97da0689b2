"""Answers to the page: jobs in parts, one job, facts of pictures; and changes."""

from __future__ import annotations

import pytest

from jobs.dashboard.app import MOST_LISTED
from jobs.errors import LedgerError
from jobs.ledger.types import JobState, WorkerInfo
from tests.jobs.dashboard.world import World
from tests.ledgers import failure, take


def ids(answer):
    return [job["id"] for job in answer["jobs"]]


class TestJobs:
    def test_the_latest_first_in_parts(self, world):
        for number in range(MOST_LISTED + 3):
            world.enter(f"job-{number:02d}")
        first = world.get("/api/jobs")
        assert (first["total"], first["next"]) == (MOST_LISTED + 3, MOST_LISTED)
        assert ids(first)[:2] == ["job-52", "job-51"]
        last = world.get(f"/api/jobs?from={first['next']}")
        assert (ids(last), last["next"]) == (["job-02", "job-01", "job-00"], None)

    def test_by_name(self, world):
        for name in ("Red-rings-1", "blue-rings-2", "green-stars-3"):
            world.enter(name)
        found = world.get("/api/jobs?search=RINGS")
        assert (ids(found), found["total"]) == (["blue-rings-2", "Red-rings-1"], 2)
        assert ids(world.get("/api/jobs?search=moon")) == []

    @pytest.mark.parametrize(
        "query",
        ["from=-1", "from=x", "from=1.5", "from=٣", "from=1000000", "from=", "search=" + "x" * 201],
    )
    def test_odd_questions(self, world, query):
        assert "expected" in world.get(f"/api/jobs?{query}", 400)["error"]

    def test_figures(self, tmp_path):
        world = World(tmp_path, price=2.0)
        world.enter()
        lease = take(world.ledger, 0)
        world.clock.now_s += 10
        world.ledger.settle(lease, [0, 1], [failure(2)])
        world.ledger.heartbeat([lease], [102], [1800.0])
        (job,) = world.get("/api/jobs")["jobs"]
        assert (job["done"], job["failed"], job["total"], job["state"]) == (2, 1, 10, "active")
        assert job["images_per_s"] == pytest.approx(0.2)
        assert job["remaining_s"] > 0
        assert job["cost"] == pytest.approx(1.0)

    def test_without_a_price_there_is_no_cost(self, world):
        world.enter()
        assert world.get("/api/jobs")["jobs"][0]["cost"] is None

    def test_long_texts_are_cut(self, world):
        world.enter()
        world.ledger.note_error("job", "x" * 5000)
        assert len(world.get("/api/jobs")["jobs"][0]["error"]) == 2000


class TestNow:
    def test_what_was_there_before_anybody_looked(self, world):
        world.enter()
        world.ledger.settle(take(world.ledger, 0), [0, 1, 3], [failure(2, "no memory")])
        world.ledger.worker_seen(
            WorkerInfo("w1", "box", 1, "cuda:0", "demo", 1, 3, "busy", rows=16, rows_used=12), 60
        )
        now = world.get("/api/now")
        assert [(p["job"], p["index"]) for p in now["pictures"]] == [
            ("job", 0),
            ("job", 1),
            ("job", 3),
        ]
        (failed,) = now["failures"]
        assert (failed["job"], failed["index"], failed["reason"]) == ("job", 2, "no memory")
        (worker,) = now["workers"]
        assert (worker["rows"], worker["rows_used"], worker["device"]) == (16, 12, "cuda:0")
        assert worker["seen_s"] == now["now_s"]

    def test_of_forgotten_jobs_nothing(self, world):
        for name in ("a", "b"):
            world.enter(name)
            world.ledger.settle(take(world.ledger, 0, job_id=name), [0], [failure(1)])
        world.ledger.forget("a")
        now = world.get("/api/now")
        assert [one["job"] for one in now["pictures"] + now["failures"]] == ["b", "b"]


class TestOneJob:
    def test_all_of_it(self, world):
        world.enter()
        lease = take(world.ledger, 1)
        world.ledger.settle(lease, [5, 4])
        world.ledger.settle(lease, [7], [failure(6)])
        answer = world.get("/api/jobs/job")
        assert answer["job"]["done"] == 3
        assert [p["index"] for p in answer["pictures"]] == [4, 5, 7]
        assert [f["index"] for f in answer["failures"]] == [6]

    def test_none(self, world):
        assert world.get("/api/jobs/none", 404)["error"] == "none: no such job in the ledger"

    def test_names_with_signs(self, world):
        world.enter("50% <b>&'\"-ü")
        assert world.get("/api/jobs/50%25%20%3Cb%3E%26%27%22-%C3%BC")["job"]["total"] == 10


class TestFacts:
    def test_of_named_images(self, world):
        world.enter()
        world.store_images(
            0, 1, 5, prompt="<script>alert(1)</script>", model={"name": "demo", "digest": ""}
        )
        found = world.get("/api/jobs/job/pictures?images=5,0,2")["pictures"]
        assert [(p["index"], p["seed"], p["model"]) for p in found] == [
            (5, "5", "demo"),
            (0, "0", "demo"),
        ]
        assert found[0]["prompt"] == "<script>alert(1)</script>"  # JSON: the page shows it as text

    def test_those_before_one(self, world):
        world.enter()
        world.store_images(*range(10))
        answer = world.get("/api/jobs/job/pictures?before=6")
        assert [p["index"] for p in answer["pictures"]] == [5, 4, 3, 2, 1, 0]
        assert answer["before"] == 0
        assert len(world.get("/api/jobs/job/pictures")["pictures"]) == 10

    def test_only_finished_ones_are_there(self, world):
        world.enter()
        world.store_images(2, 9)
        answer = world.get("/api/jobs/job/pictures")
        assert [p["index"] for p in answer["pictures"]] == [9, 2]

    @pytest.mark.parametrize(
        "query", ["images=x", "images=-1", "images=1;2", "images=" + ",".join("1" * 60), "before=x"]
    )
    def test_odd_questions(self, world, query):
        world.enter()
        assert "expected" in world.get(f"/api/jobs/job/pictures?{query}", 400)["error"]

    def test_images_that_the_job_does_not_have(self, world):
        world.enter()
        assert "no image 10" in world.get("/api/jobs/job/pictures?images=10", 404)["error"]

    def test_odd_values_of_a_record_are_left_out(self, world):
        world.enter()
        world.store_images(0, sampler=["x"], steps={"a": 1}, guidance=None, negative=7)
        (facts,) = world.get("/api/jobs/job/pictures?images=0")["pictures"]
        assert facts.keys().isdisjoint({"sampler", "steps", "guidance", "negative"})


class TestChanges:
    def test_each(self, world):
        world.enter()
        assert world.post("/api/jobs/job/pause").json()["said"] == "paused"
        assert world.ledger.status("job").state is JobState.PAUSED
        assert world.post("/api/jobs/job/unpause").json()["job"]["state"] == "active"
        world.ledger.settle(take(world.ledger, 0), [], [failure(1), failure(2)])
        assert world.post("/api/jobs/job/retry").json()["said"] == "2 failed images to do again"
        assert world.ledger.status("job").failed == 0
        assert world.post("/api/jobs/job/cancel").json()["said"] == "cancelled"

    def test_what_has_ended_stays_so(self, world):
        world.enter()
        world.post("/api/jobs/job/cancel")
        answer = world.post("/api/jobs/job/pause")
        assert (answer.status_code, answer.json()["error"]) == (
            400,
            "job is cancelled and stays so",
        )

    def test_odd_ones(self, world):
        world.enter()
        assert "is no change" in world.post("/api/jobs/job/forget").json()["error"]
        assert world.post("/api/jobs/none/pause").status_code == 404


def test_a_ledger_that_is_away_is_said(world, monkeypatch):
    def away(*_):
        raise LedgerError("ledger at here: cannot connect")

    monkeypatch.setattr(world.ledger, "job_ids", away)
    assert world.get("/api/jobs", 503)["error"] == "ledger at here: cannot connect"


def test_what_nobody_foresaw_tells_nothing_of_itself(world, monkeypatch):
    def odd(*_):
        raise KeyError("a secret")

    monkeypatch.setattr(world.ledger, "job_ids", odd)
    answer = world.client.get("/api/jobs")
    assert (answer.status_code, answer.json()) == (500, {"error": "unexpected KeyError"})
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_files_of_the_page(world):
    page = world.client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text == world.client.get("/jobs/any").text
    assert "<script>" not in page.text
    assert "style=" not in page.text
    assert world.client.get("/static/main.js").headers["content-type"].startswith("text/javascript")
    for name in ("../app.py", "app.py", "%2e%2e/app.py", "none.js", ""):
        assert world.client.get(f"/static/{name}").status_code == 404
