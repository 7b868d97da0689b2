"""The commands that look at jobs and steer them, as a shell sees them: a real Valkey, one worker.

Jobs of the model `odd` are rendered; nobody has the model `absent`, so its jobs stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.errors import ExitCode
from jobs.folder.layout import JobKeys
from jobs.ledger.types import JobState
from tests.integration.cluster import Cluster, make_model
from tests.servers import PATIENCE_S, Valkey, free_port, wait_for
from tests.servers_s3 import BUCKET, WRITER

MANIFEST = """\
version: 1
name: NAME
model: MODEL
defaults: {width: 64, height: 64, steps: STEPS}
prompts:
  - prompt: a red circle
    seeds: {start: 0, count: COUNT}
  - prompt: a blue ring
    seeds: [1, 2]
"""
FROM_A_PICTURE = """\
  - prompt: a green star
    init_image: start.png
    strength: 0.5
"""


class Shell(Cluster):
    """A cluster, and the commands that a person types."""

    def write(
        self, name: str, *, circles: int = 3, model: str = "odd", steps: int = 4, more: str = ""
    ) -> str:
        """The path of a manifest of some red circles and two blue rings."""
        text = MANIFEST.replace("NAME", name).replace("MODEL", model)
        text = text.replace("STEPS", str(steps)).replace("COUNT", str(circles))
        path = self.folder / f"{name}.yaml"
        path.write_text(text + more)
        return str(path)

    def enter(self, name: str, **of: Any) -> str:
        """Submits a job of this name; its id."""
        return self.json("submit", self.write(name, **of), "--store", self.out)["job"]

    @property
    def out(self) -> str:
        return str(self.folder / "out")

    def says(self, *arguments: str, code: int = ExitCode.DONE) -> str:
        """What a command prints for people."""
        done = self.command(*arguments)
        assert done.returncode == code, f"{arguments}\n{done.stdout}{done.stderr}{self.logs()}"
        return done.stdout + done.stderr

    def json(self, *arguments: str, code: int = ExitCode.DONE) -> dict[str, Any]:
        """The one document that it prints for programs."""
        done = self.command(*arguments, "--json")
        assert done.returncode == code, f"{arguments}\n{done.stdout}{done.stderr}{self.logs()}"
        return json.loads(done.stdout)

    def begin(self, *arguments: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *arguments],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def wait_for_some(self, job_id: str) -> None:
        wait_for(lambda: self.ledger.status(job_id).done, f"an image\n{self.logs()}")

    def wait_until_released(self, job_id: str) -> None:
        wait_for(lambda: not self.ledger.status(job_id).leased, f"it to rest\n{self.logs()}")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("shell")
    (folder / "valkey").mkdir()
    valkey = Valkey(folder / "valkey")
    shell = Shell(folder, valkey, make_model(folder))
    try:
        shell.start_worker()
        yield shell
    finally:
        shell.close()
        valkey.kill()


@pytest.fixture
def resting(shell: Shell) -> Iterator[str]:
    """A job that waits for a worker, whose name begins as that of no other."""
    yield shell.enter("resting", model="absent")
    for job in shell.ledger.jobs():
        if job.name == "resting":
            shell.ledger.forget(job.job_id)


@pytest.fixture(scope="module")
def alike(shell: Shell) -> list[str]:
    """Two jobs whose names begin alike."""
    return [shell.enter(f"alike-{name}", model="absent") for name in "ab"]


def pictures(folder: Path) -> int:
    return len(list(folder.glob("images/*.png")))


def test_from_submit_to_pictures(shell, tmp_path):
    manifest = shell.write("plain")
    said = shell.says("submit", manifest, "--store", shell.out, "--wait")
    assert "images    5, 0 done\n" in said
    assert "  done  5 of 5 (100 %)\n" in said
    ended = shell.json("submit", manifest, "--store", shell.out, "--wait")
    job_id = ended["job"]
    assert (ended["state"], ended["done"], ended["failed"]) == ("done", 5, 0)

    assert shell.json("status", "plain") == {**ended, "workers": 1}
    assert "images       5 of 5 done, 0 failed\n" in shell.says("status", job_id)
    assert shell.json("watch", "plain") == ended
    assert {**ended, "workers": 1} in shell.json("jobs")["jobs"]
    listed = [line.split()[:4] for line in shell.says("jobs").splitlines()]
    assert [job_id, "odd", "done", "5"] in listed
    assert shell.json("failures", "plain") == {"failures": []}
    assert shell.says("failures", "plain") == ""

    mine = tmp_path / "mine"
    collected = shell.json("collect", "plain", str(mine))
    assert (collected["copied"], collected["present"], collected["damaged"]) == (5, 0, [])
    assert pictures(mine / job_id) == 5
    assert (mine / job_id / "done.json").exists()
    assert "0 images copied (0 bytes), 5 were there already" in shell.says(
        "collect", "plain", str(mine)
    )
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    blue = tmp_path / "blue"
    filtered = shell.json(
        *("collect", job_id, str(blue), "--containing", "BLUE"),
        *("--store", shell.out, "--redis", nowhere),
    )
    assert (filtered["copied"], pictures(blue / job_id)) == (2, 2)
    assert not (blue / job_id / "done.json").exists()
    assert shell.json("collect", "plain", str(blue), "--containing", "cat")["copied"] == 0


def test_a_damaged_picture_is_not_collected(shell, tmp_path):
    job_id = shell.enter("damaged")
    shell.json("watch", job_id)
    damaged, *_ = shell.store.list(JobKeys(job_id).images_prefix)
    shell.store.put(damaged.key, b"something else", overwrite=True)
    path = JobKeys(job_id).path(damaged.key)
    collected = shell.json("collect", "damaged", str(tmp_path), code=ExitCode.STORE)
    assert (collected["copied"], collected["damaged"]) == (4, [path])
    assert not (tmp_path / damaged.key).exists()
    said = shell.says("collect", "damaged", str(tmp_path), code=ExitCode.STORE)
    assert f"not what its record says, not copied: {path}" in said


def test_workers_are_listed(shell):
    shell.wait_for_workers(1)
    (worker,) = shell.json("workers")["workers"]
    assert (worker["model"], worker["device"], worker["pid"]) == (
        "odd",
        "cpu",
        shell.workers[0].pid,
    )
    listed = [line.split()[:3] for line in shell.says("workers").splitlines()]
    assert listed == [["WORKER", "DEVICE", "MODEL"], [worker["name"], "cpu", "odd"]]


def test_a_failed_image_is_told_of_and_tried_again(shell):
    Image.new("RGB", (64, 64), "teal").save(shell.folder / "start.png")
    picture = (shell.folder / "start.png").read_bytes()
    key = JobKeys("broken").input(f"{hashlib.sha256(picture).hexdigest()}.png")
    manifest = shell.write("broken", more=FROM_A_PICTURE)
    shell.workers[0].send_signal(signal.SIGSTOP)
    shell.json("submit", manifest, "--store", shell.out, "--job", "broken")
    shell.store.put(key, b"no picture", overwrite=True)  # before the worker reads it
    shell.workers[0].send_signal(signal.SIGCONT)
    ended = shell.json("watch", "broken", code=ExitCode.SOME_FAILED)
    assert (ended["state"], ended["done"], ended["failed"]) == ("done", 5, 1)
    assert shell.json("status", "brok", code=ExitCode.SOME_FAILED) == {**ended, "workers": 1}
    assert "5 of 6 done, 1 failed" in shell.says("status", "brok", code=ExitCode.SOME_FAILED)
    assert "5 of 6 (83 %), 1 failed" in shell.says("watch", "brok", code=ExitCode.SOME_FAILED)

    (failure,) = shell.json("failures", "brok")["failures"]
    assert (failure["index"], failure["prompt"]) == (5, "a green star")
    assert "is damaged: its sha256 is" in failure["reason"]
    assert f"5  {failure['name']}  {failure['reason']}" in shell.says("failures", "brok")

    # Still damaged, so it fails again; then not.
    assert "broken: 1 failed image to do again" in shell.says("retry", "brok")
    assert shell.json("watch", "brok", code=ExitCode.SOME_FAILED)["failed"] == 1
    shell.store.put(key, picture, overwrite=True)
    again = shell.json("retry", "brok")
    assert (again["state"], again["failed"]) == ("active", 0)
    assert shell.json("watch", "brok")["done"] == 6
    assert shell.json("failures", "brok") == {"failures": []}
    assert "0 failed images to do again" in shell.says("retry", "brok")
    assert shell.ledger.status("broken").state is JobState.DONE


def test_a_paused_job_rests_and_goes_on(shell):
    job_id = shell.enter("pausing", circles=126, steps=10)
    shell.wait_for_some(job_id)
    paused = shell.json("pause", "pausing")
    assert paused["state"] == "paused"
    shell.wait_until_released(job_id)
    rested = shell.json("status", "pausing")
    assert (rested["state"], rested["leased"]) == ("paused", 0)
    assert 0 < rested["done"] < 128
    assert f"{job_id}: active" in shell.says("unpause", "pausing")
    assert shell.json("watch", "pausing")["done"] == 128
    kinds = [event.kind for event in shell.ledger.events(job_id)]
    pause, go_on = kinds.index("paused"), len(kinds) - 1 - kinds[::-1].index("active")
    assert "claimed" in kinds[:pause]
    assert "claimed" not in kinds[pause:go_on]
    assert "claimed" in kinds[go_on:]
    for name in ("pause", "cancel"):
        assert "is done and stays so" in shell.says(name, "pausing", code=ExitCode.BAD_INPUT)


def test_a_cancelled_job_ends_for_all_who_watch_it(shell):
    manifest = shell.write("cancelling", circles=198, steps=50)
    waiting = shell.begin("submit", manifest, "--store", shell.out, "--wait", "--json")
    wait_for(lambda: any(j.name == "cancelling" for j in shell.ledger.jobs()), "the job")
    (job_id,) = (job.job_id for job in shell.ledger.jobs() if job.name == "cancelling")
    shell.wait_for_some(job_id)
    assert shell.json("status", "cancelling")["state"] == "active"
    assert f"{job_id}: cancelled" in shell.says("cancel", "cancelling")
    output, errors = waiting.communicate(timeout=PATIENCE_S)
    assert waiting.returncode == ExitCode.CANCELLED, errors
    assert json.loads(output)["state"] == "cancelled"
    shell.wait_until_released(job_id)
    ended = shell.json("status", "cancelling", code=ExitCode.CANCELLED)
    assert (ended["state"], ended["published"], ended["leased"]) == ("cancelled", 0, 0)
    assert 0 < ended["done"] < 200
    assert len(shell.digests(job_id)) == ended["done"]
    page = shell.folder / "out" / job_id / "index.html"
    wait_for(page.exists, f"its gallery\n{shell.logs()}")
    assert f"{ended['done']} of 200 pictures so far" in page.read_text()
    assert not page.with_name("done.json").exists()
    assert "state        cancelled\n" in shell.says("status", "cancelling", code=ExitCode.CANCELLED)
    assert "  cancelled  " in shell.says("watch", "cancelling", code=ExitCode.CANCELLED)
    refused = shell.json("unpause", "cancelling", code=ExitCode.BAD_INPUT)
    assert "is cancelled and stays so" in refused["error"]
    assert shell.json("cancel", "cancelling")["state"] == "cancelled"
    # Submitted again it goes on; retry makes a cancelled one active too.
    again = shell.json("submit", manifest, "--store", shell.out)
    assert (again["job"], again["new"]) == (job_id, False)
    assert shell.ledger.status(job_id).state is JobState.ACTIVE
    shell.json("cancel", "cancelling")
    assert shell.json("retry", "cancelling")["state"] == "active"
    shell.json("cancel", "cancelling")
    shell.wait_until_released(job_id)


def test_a_forgotten_job_is_resumed_from_its_folder(shell):
    job_id = shell.enter("forgotten")
    shell.json("watch", job_id)
    forgotten = shell.json("forget", "forgot")
    assert forgotten == {"job": job_id, "folder": f"{shell.out}/{job_id}"}
    assert "no job is called" in shell.says("status", job_id, code=ExitCode.NOT_FOUND)
    before = shell.digests(job_id)
    assert len(before) == 5
    lost = next(iter(before))
    shell.store.delete(JobKeys(job_id)(lost))
    resumed = shell.json("resume", "forgot", "--store", shell.out)
    assert (resumed["job"], resumed["images"], resumed["new"]) == (job_id, 5, True)
    assert resumed["done"] >= 4  # a worker may have been at it by now
    assert shell.json("watch", job_id)["done"] == 5
    assert shell.digests(job_id) == before
    # It is there already, and complete.
    said = shell.says("resume", job_id, "--store", shell.out)
    assert f"job       {job_id} (was done already)\nimages    5, 5 done\n" in said
    # Also where the ledger takes an image for done that is gone.
    shell.store.delete(JobKeys(job_id)(lost))
    assert shell.json("resume", "forgot", "--store", shell.out)["gone"] == 1
    assert shell.json("watch", job_id)["done"] == 5
    assert shell.digests(job_id) == before


def test_a_job_that_is_not_over_is_forgotten_by_force_only(shell, resting):
    refused = shell.json("forget", "resting", code=ExitCode.BAD_INPUT)
    assert "is active; cancel it first" in refused["error"]
    assert shell.ledger.status(resting).state is JobState.ACTIVE
    assert f"{resting}: forgotten" in shell.says("forget", "resting", "--force")
    shell.says("status", "resting", code=ExitCode.NOT_FOUND)


def test_resume_names_what_it_does_not_find(shell, alike):
    missing = shell.json("resume", "nothing", "--store", shell.out, code=ExitCode.NOT_FOUND)
    assert missing["exit_code"] == ExitCode.NOT_FOUND
    several = shell.says("resume", "alike", "--store", shell.out, code=ExitCode.BAD_INPUT)
    assert "any of 2 jobs: " in several
    assert all(job_id in several for job_id in alike)
    empty = shell.json("resume", "", "--store", shell.out, code=ExitCode.BAD_INPUT)
    assert "is not a folder name" in empty["error"]


def test_ctrl_c_ends_the_watching_and_not_the_job(shell, resting):
    ours, theirs = os.openpty()  # on a terminal it shows that it watches
    watching = shell.begin("watch", "resting", "--json", stderr=theirs)
    os.close(theirs)
    try:
        assert os.read(ours, 1)
        watching.send_signal(signal.SIGINT)
        output, _ = watching.communicate(timeout=PATIENCE_S)
    finally:
        os.close(ours)
    assert watching.returncode == ExitCode.INTERRUPTED
    assert "the job goes on" in json.loads(output)["error"]
    assert shell.ledger.status(resting).state is JobState.ACTIVE


@pytest.mark.parametrize(
    "name",
    ["status", "watch", "failures", "pause", "unpause", "cancel", "retry", "forget", "collect"],
)
def test_a_job_is_named_by_a_unique_beginning(shell, alike, name, tmp_path):
    """Each with names that mean none, several, and any."""
    more = (str(tmp_path),) if name == "collect" else ()
    none = shell.json(name, "unheard-of", *more, code=ExitCode.NOT_FOUND)
    assert none["exit_code"] == ExitCode.NOT_FOUND
    assert "no job is called 'unheard-of' or begins so" in none["error"]
    several = shell.says(name, "alike", *more, code=ExitCode.BAD_INPUT)
    assert "error: 'alike' may be any of 2 jobs: " in several
    assert all(job_id in several for job_id in alike)
    empty = shell.json(name, "", *more, code=ExitCode.BAD_INPUT)
    assert "the job's name is empty" in empty["error"]
    assert [shell.ledger.status(job_id).state for job_id in alike] == [JobState.ACTIVE] * 2
    assert list(tmp_path.iterdir()) == []


def test_a_whole_name_is_no_beginning(shell, resting):
    """One that another name begins with means the job of that name."""
    manifest = shell.write("resting", model="absent", circles=4)
    shell.json("submit", manifest, "--store", shell.out, "--job", f"{resting}-too")
    assert shell.json("pause", resting)["job"] == resting
    assert shell.ledger.status(f"{resting}-too").state is JobState.ACTIVE
    assert shell.json("status", f"{resting}-")["job"] == f"{resting}-too"


def test_submitting_again(shell, resting):
    manifest = str(shell.folder / "resting.yaml")
    assert shell.ledger.status(resting).priority == 10
    again = shell.json("submit", manifest, "--store", shell.out, "--priority", "90")
    assert (again["job"], again["new"]) == (resting, False)
    assert shell.json("status", "resting")["priority"] == 90
    elsewhere = str(shell.folder / "elsewhere")
    conflict = shell.json("submit", manifest, "--store", elsewhere, code=ExitCode.CONFLICT)
    assert shell.out in conflict["error"]
    assert shell.ledger.status(resting).store == shell.out
    other = shell.write("resting", model="absent", circles=9)
    taken = ("submit", other, "--store", shell.out, "--job", resting)
    assert resting in shell.json(*taken, code=ExitCode.CONFLICT)["error"]
    assert shell.ledger.status(resting).total == 5


@pytest.mark.parametrize("name", ["jobs", "submit", "resume"])
def test_a_ledger_that_is_away(shell, name, tmp_path):
    nowhere = f"redis://:secret@127.0.0.1:{free_port()}/0"
    arguments = {
        "submit": (shell.write("away"), "--store", str(tmp_path / "out")),
        "resume": ("some", "--store", str(tmp_path / "out")),
    }
    command = (name, *arguments.get(name, ()), "--redis", nowhere)
    assert shell.json(*command, code=ExitCode.LEDGER)["exit_code"] == ExitCode.LEDGER
    said = shell.says(*command, code=ExitCode.LEDGER)
    assert "cannot connect" in said
    assert "secret" not in said
    assert list(tmp_path.iterdir()) == []  # nothing was written before the ledger was asked


def test_endpoint_says_where_the_bucket_is(shell, s3_server, aws, tmp_path):
    """For one command, whatever the environment says."""
    environ = dict(shell.environ)
    shell.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
        "AWS_ACCESS_KEY_ID": WRITER.key_id,
        "AWS_SECRET_ACCESS_KEY": WRITER.secret,
    }
    store = f"s3://{BUCKET}/by-endpoint"
    there = ("--store", store, "--endpoint", s3_server.endpoint)
    try:
        manifest = shell.write("bucket", model="absent")
        job_id = shell.json("submit", manifest, *there)["job"]
        assert shell.json("status", job_id)["store"] == store
        assert s3_server.client().head_object(Bucket=BUCKET, Key=f"by-endpoint/{job_id}/job.json")
        shell.json("forget", job_id, "--force")
        assert shell.json("resume", "bucket", *there)["new"] is True
        model = str(shell.folder / "odd.safetensors")
        ran = shell.json("run", shell.write("direct"), "--model", model, *there)
        assert (ran["images"], ran["failed"]) == (5, 0)
        collected = shell.json("collect", ran["job"], str(tmp_path), *there)
        assert (collected["copied"], pictures(tmp_path / ran["job"])) == (5, 5)
    finally:
        shell.environ = environ
