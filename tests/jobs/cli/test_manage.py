"""The commands that look at jobs and steer them, on a real Valkey; a test plays the worker."""

from __future__ import annotations

import json
import re

import pytest

from jobs.cli.root import main
from jobs.errors import ExitCode
from jobs.folder.layout import JobKeys
from jobs.ledger.types import JobState, WorkerInfo
from jobs.storage import open_store
from jobs.task import Failure
from jobs.terminal.figures import figures_of
from tests.jobs.cli.commanded import TEXT
from tests.jobs.manifests import write
from tests.servers_s3 import BUCKET, log_in


class TestStatus:
    def test_a_job_that_goes_on_is_no_failure(self, commands):
        job = commands.submit()["job"]
        assert "0 of 6 done" in commands("status", "shapes")
        commands.ledger.set_state(job, JobState.PAUSED)
        assert commands.json("status", job)["state"] == "paused"

    def test_done(self, commands):
        commands.settle(commands.submit()["job"])
        assert commands.json("status", "shapes")["done"] == 6

    @pytest.mark.parametrize("command", ["status", "watch"])
    def test_done_with_failures(self, commands, command):
        commands.settle(commands.submit()["job"], failed=[2])
        assert commands.json(command, "shapes", code=ExitCode.SOME_FAILED)["failed"] == 1
        commands(command, "shapes", code=ExitCode.SOME_FAILED)

    @pytest.mark.parametrize("command", ["status", "watch"])
    def test_cancelled(self, commands, command):
        commands.submit()
        commands("cancel", "shapes")
        assert commands.json(command, "shapes", code=ExitCode.CANCELLED)["state"] == "cancelled"

    def test_failures_of_a_job_that_goes_on_may_still_be_retried(self, commands):
        job = commands.submit()["job"]
        lease = commands.ledger.claim(job, 0, "w1").lease
        commands.ledger.settle(lease, [], [Failure(0, "0", "a ring", 0, "broke")])
        assert commands.json("status", job)["failed"] == 1

    def test_steps_and_speed_are_those_that_watchers_see(self, commands):
        job = commands.submit()["job"]
        lease = commands.ledger.claim(job, 0, "w1").lease
        assert "steps        0 of " in commands("status", job)
        commands.ledger.heartbeat([lease], [1_000_000])  # many workers died in between
        found = commands.ledger.status(job)
        said = commands("status", job)
        assert f"steps        {found.evaluations - 1} of {found.evaluations}" in said
        assert f"{figures_of(found).images_per_s:.2f} images/s, 0:00 left" in said

    def test_each_model_of_several(self, commands):
        text = TEXT.replace("prompts:", "matrix: {model: [demo, other]}\nprompts:")
        manifest = write(commands.folder, text)
        job = commands.json("submit", manifest, "--store", commands.folder / "out")["job"]
        commands.ledger.worker_seen(WorkerInfo("w1", "host", 1, "cpu", "demo", 0, 0, "idle"), 60)
        lease = commands.ledger.claim(job, 0, "w1").lease
        commands.ledger.settle(lease, [0, 1], [])
        lines = commands("status", job).splitlines()
        assert lines[2:4] == [
            "model        demo: 2 of 6 (33 %) done, 1 worker",
            "model        other: 0 of 6 (0 %) done, 0 workers",
        ]
        assert lines[-1].startswith("waits        no worker has model other; workers have demo (1)")
        document = commands.json("status", job)
        assert (document["model"], document["workers"]) == ("demo, other", 1)
        parts = [(part["name"], part["images"], part["done"]) for part in document["models"]]
        assert parts == [("demo", 6, 2), ("other", 6, 0)]
        assert "no worker has model other" in commands("jobs")

    def test_the_codes_are_in_the_help(self, commands):
        said = " ".join(commands("status", "--help").split())
        assert "3 if it is done but for images that failed, 8 if it was cancelled" in said


class TestLists:
    def test_jobs(self, commands):
        job = commands.submit()["job"]
        said = commands("jobs").splitlines()
        assert said[0].split() == ["JOB", "MODEL", "STATE", "DONE", "FAILED", "SPEED", "LEFT"]
        assert said[1].split()[:3] == [job, "demo", "active"]
        assert "0 of 6 (0 %)" in said[1]
        assert said[1].index("active") == said[0].index("STATE")
        assert commands.json("jobs")["jobs"][0]["job"] == job

    def test_what_is_wrong_with_a_job_is_said_below(self, commands):
        job = commands.submit()["job"]
        seen(commands.ledger, "w1", "demo", "idle")
        commands.ledger.note_error(job, "w1: the bucket\nis gone")
        assert commands("jobs").splitlines()[2:] == [f"{job}: last error: w1: the bucket is gone"]

    def test_workers(self, commands):
        commands.ledger.worker_seen(
            WorkerInfo(*("host-1", "host", 1, "cpu", "demo", 0, 12_000, "idle"), rows=16), 60.0
        )
        busy = WorkerInfo(*("host-2", "host", 2, "cpu", "demo", 1, 40, "busy"), images_per_s=0.754)
        commands.ledger.worker_seen(busy, 60.0)
        said = [re.sub(r"\d+ s ago", "0 s ago", line) for line in commands("workers").splitlines()]
        assert said == [
            "WORKER  DEVICE  MODEL  IMAGES  SPEED   ROWS     SEEN     STATE",
            "host-1  cpu     demo   12,000          0 of 16  0 s ago  idle",
            "host-2  cpu     demo   40      0.75/s           0 s ago  busy",
        ]


class TestModels:
    """A job for a model that no worker has would wait for ever, and nobody be told."""

    def test_without_any_worker(self, commands):
        manifest = write(commands.folder, TEXT)
        said = commands("submit", manifest, "--store", commands.folder / "out")
        note = "no worker has model demo; there are no workers; sdbatch worker --model demo starts"
        assert note in said
        assert note in commands("jobs")
        assert f"waits        {note}" in commands("status", "shapes")
        assert note in commands("resume", "shapes", "--store", commands.folder / "out")
        assert commands.json("jobs")["jobs"][0]["workers"] == 0
        assert commands.submit()["workers"] == 0

    def test_with_workers_of_other_models(self, commands):
        commands.submit()
        for name, model, state in (
            ("w1", "v1", "idle"),
            ("w2", "v1", "busy"),
            ("w3", "inpaint", "busy"),
            ("w4", "demo", "stopped: the store is away"),
            ("w5", "demo", "draining"),
        ):
            seen(commands.ledger, name, model, state)
        note = "no worker has model demo; workers have inpaint (1), v1 (2); sdbatch worker"
        assert note in commands("jobs")
        assert note in commands("status", "shapes")

    @pytest.mark.parametrize("what", ["a worker", "paused", "cancelled", "settled"])
    def test_of_a_job_that_waits_for_none_nothing_is_said(self, commands, what):
        job = commands.submit()["job"]
        if what == "a worker":
            seen(commands.ledger, "w1", "demo", "idle")
            assert commands.json("status", job)["workers"] == 1
        elif what == "settled":
            commands.settle(job)
        else:
            commands.ledger.set_state(job, JobState(what))
        assert "no worker" not in commands("jobs")
        code = ExitCode.CANCELLED if what == "cancelled" else ExitCode.DONE
        assert "no worker" not in commands("status", "shapes", code=code)


def seen(ledger, name, model, state):
    """A worker reports itself."""
    ledger.worker_seen(WorkerInfo(name, "host", 1, "cpu", model, 0, 0, state), 60)


class TestNames:
    @pytest.mark.parametrize("name", ["", " "])
    @pytest.mark.parametrize(
        "command",
        ["status", "failures", "watch", "pause", "unpause", "cancel", "retry", "forget", "resume"],
    )
    def test_an_empty_name_is_no_job(self, commands, command, name, tmp_path):
        """As of a variable that is not set; there is one job, and that has to stay."""
        job = commands.submit()["job"]
        options = ["--store", tmp_path / "out"] if command == "resume" else []
        codes = {ExitCode.BAD_INPUT, ExitCode.NOT_FOUND if command == "resume" and name else None}
        ended = main([command, name, *map(str, options)])
        assert ended in codes
        assert commands.ledger.status(job).state is JobState.ACTIVE

    @pytest.mark.parametrize("options", [[], ["--store", "out"]])
    def test_nor_is_it_collected(self, commands, options, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        commands.settle(commands.submit()["job"])
        code = ExitCode.STORE if options else ExitCode.BAD_INPUT
        commands("collect", "", "mine", *options, code=code)
        assert not (tmp_path / "mine").exists()


class TestForget:
    def test_a_job_that_ended(self, commands):
        job = commands.submit()["job"]
        commands.settle(job)
        said = commands("forget", "shapes")
        folder = f"{commands.folder}/out/{job}"
        assert said == f"{job}: forgotten; its pictures stay in {folder}\n"
        assert commands.ledger.jobs() == []
        assert len(list(commands.store.list(JobKeys(job).images_prefix))) == 6
        resumed = commands.json("resume", job, "--store", commands.folder / "out")
        assert (resumed["new"], resumed["done"]) == (True, 6)

    def test_as_json(self, commands):
        job = commands.submit()["job"]
        commands("cancel", job)
        assert commands.json("forget", job) == {
            "job": job,
            "folder": f"{commands.folder}/out/{job}",
        }

    @pytest.mark.parametrize("state", [JobState.ACTIVE, JobState.PAUSED])
    def test_not_a_job_that_goes_on_unless_forced(self, commands, state):
        job = commands.submit()["job"]
        commands.ledger.set_state(job, state)
        said = commands("forget", job, code=ExitCode.BAD_INPUT)
        assert f"{job} is {state}; cancel it first (sdbatch cancel {job})" in said
        assert commands.ledger.status(job).state is state
        commands("forget", job, "--force")
        assert commands.ledger.jobs() == []

    def test_no_such_job(self, commands):
        commands("forget", "nope", code=ExitCode.NOT_FOUND)


class TestSubmit:
    def test_another_store_is_refused_and_the_error_says_what_to_do(self, commands, tmp_path):
        job = commands.submit()["job"]
        manifest, other = write(tmp_path, TEXT), tmp_path / "out2"
        said = commands("submit", manifest, "--store", other, code=ExitCode.CONFLICT)
        assert f"its folder in {tmp_path}/out, not in {other}" in said
        assert f"sdbatch forget {job}" in said
        assert not list(other.glob("*"))
        commands("cancel", job)
        commands("forget", job)
        assert commands.json("submit", manifest, "--store", other)["new"] is True
        assert commands.ledger.status(job).store == str(other)

    def test_a_server_that_may_delete_jobs_is_warned_of(self, commands, valkey):
        manifest = write(commands.folder, TEXT)
        submit = ["submit", manifest, "--store", commands.folder / "out"]
        assert "maxmemory-policy" not in commands(*submit)
        with valkey.client() as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
            try:
                said = commands(*submit)
            finally:
                client.config_set("maxmemory-policy", "noeviction")
        assert "warning: ledger at 127.0.0.1:" in said
        assert "its maxmemory-policy is allkeys-lru" in said

    def test_another_priority(self, commands):
        job = commands.submit("--priority", "10")["job"]
        commands.submit("--priority", "90")
        assert commands.json("status", job)["priority"] == 90
        commands.submit()
        assert commands.json("status", job)["priority"] == 90

    def test_what_manifests_leave_to_the_settings(self, commands, monkeypatch):
        monkeypatch.setenv("SDBATCH_REPRODUCIBLE", "fast")
        job = commands.submit()["job"]
        assert json.loads(commands.store.get(JobKeys(job).job))["reproducible"] == "fast"

    def test_again_says_how_the_job_stands(self, commands):
        manifest = write(commands.folder, TEXT)
        again = ["submit", manifest, "--store", commands.folder / "out"]
        job = commands.submit()["job"]
        assert f"job       {job} (goes on)\nimages    6, 0 done\n" in commands(*again)
        commands.ledger.set_state(job, JobState.PAUSED)
        assert f"job       {job} (is paused; sdbatch unpause {job})\n" in commands(*again)
        commands.ledger.set_state(job, JobState.ACTIVE)
        commands.settle(job)
        assert f"job       {job} (was done already)\nimages    6, 6 done\n" in commands(*again)
        assert commands.json(*again)["state"] == "done"

    def test_again_after_failures_says_how_to_retry(self, commands):
        job = commands.submit()["job"]
        commands.settle(job, failed=[2])
        said = commands("submit", write(commands.folder, TEXT), "--store", commands.folder / "out")
        retry = f"sdbatch retry {job} does the failed ones again"
        assert f"{job} (was done already; {retry})\nimages    6, 5 done, 1 failed\n" in said

    def test_images_that_are_gone_are_told_of(self, commands):
        job = commands.submit()["job"]
        commands.settle(job)
        first, *_ = commands.store.list(JobKeys(job).images_prefix)
        commands.store.delete(first.key)
        resumed = commands("resume", job, "--store", commands.folder / "out")
        assert (
            "images    6, 5 done\ngone      1 that was done is not in the folder: again" in resumed
        )


class TestEndpoint:
    """The environment leads to a server that is not there; --endpoint to the real one."""

    @pytest.fixture
    def address(self, s3_server, aws, tmp_path):
        log_in(aws, "http://127.0.0.1:9")
        self.options = ["--endpoint", s3_server.endpoint]
        return f"s3://{BUCKET}/{tmp_path.name}"

    def test_submit_resume_and_collect(self, commands, address, s3_server, tmp_path):
        manifest = write(tmp_path, TEXT)
        at = ["--store", address, *self.options]
        job = commands.json("submit", manifest, *at)["job"]
        assert commands.ledger.status(job).store == address
        commands.store = open_store(address, endpoint=s3_server.endpoint)
        keys = JobKeys(job)
        assert commands.store.head(keys.job) is not None
        commands.settle(job)
        assert commands.json("resume", job, *at)["done"] == 6
        for options, mine in ((self.options, "a"), (at, "b")):
            collected = commands.json("collect", job, tmp_path / mine, *options)
            assert (collected["copied"], collected["damaged"]) == (6, [])

    def test_run(self, commands, address, tmp_path, monkeypatch):
        """It gets as far as to its model."""
        manifest = write(tmp_path, TEXT)
        options = ["--store", address, "--model", "nowhere.ckpt"]
        commands("run", manifest, *options, *self.options, code=ExitCode.MODEL)

    @pytest.mark.parametrize("command", ["submit", "run"])
    def test_a_folder_has_none(self, commands, command, tmp_path):
        manifest = write(tmp_path, TEXT)
        options = ["--store", tmp_path / "out", "--endpoint", "http://127.0.0.1:9"]
        said = commands(command, manifest, *options, code=ExitCode.STORE)
        assert "is a folder; only s3://bucket/prefix has an endpoint" in said

    @pytest.mark.parametrize("command", ["submit", "resume", "collect", "run"])
    def test_the_help_says_what_workers_use(self, commands, command):
        said = " ".join(commands(command, "--help").split())
        assert "A worker goes by its own AWS_ENDPOINT_URL" in said
