"""`sdbatch doctor` beside real servers, and beside what is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from jobs.doctor.checks import clock, store
from jobs.doctor.finding import State
from jobs.errors import ExitCode
from jobs.ledger import open_ledger
from jobs.ledger.types import WorkerInfo
from jobs.storage import LocalStore
from tests.commands import run_command

CACHE = {"SDBATCH_CACHE": os.environ["SDBATCH_CACHE"], "SDBATCH_LOCAL": "/nowhere"}


def looked(folder: Path, *arguments: str, **environ: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code, and findings by what was looked at."""
    done = run_command(["doctor", "--json", *arguments], os.environ | CACHE | environ, folder)
    checks = json.loads(done.stdout)["checks"]
    return done.returncode, {one["check"]: one for one in checks}


def test_a_machine_alone(tmp_path):
    """Nothing is bad where nobody named a queue; nothing is left behind."""
    code, found = looked(tmp_path, SDBATCH_REDIS="", SDBATCH_DEVICE="cpu")
    assert code == 0
    assert found["sdbatch"]["state"] == found["store"]["state"] == "good"
    assert found["device"]["state"] == "good"
    assert "cpu" in found["device"]["found"]
    assert found["cache"]["state"] in ("good", "look")  # of a disk that is nearly full
    assert found["model list"]["found"] == "empty: only demo is known"
    assert not list(tmp_path.iterdir())


def test_beside_real_servers(tmp_path, valkey, s3_address):
    valkey.client().flushall()
    ledger = open_ledger(valkey.url)
    ledger.worker_seen(WorkerInfo("w1", "here", 1, "cuda:0", "sd-v1", 0, 0, "idle"), 60)
    code, found = looked(tmp_path, "--redis", valkey.url, "--store", s3_address)
    assert code == 0
    assert "answers in" in found["queue"]["found"]
    assert found["clock"]["state"] == "good"
    assert found["workers"]["found"] == "sd-v1 (1)"
    assert found["store"]["found"] == f"{s3_address} writes once, reads and deletes"


def test_what_is_wrong_has_advice_and_a_code(tmp_path):
    free = "redis://127.0.0.1:1/0"
    code, found = looked(tmp_path, "--redis", free, SDBATCH_MODELS='{"sd": "gone.safetensors"}')
    assert code == ExitCode.LEDGER
    assert (found["queue"]["state"], found["store"]["state"]) == ("bad", "good")
    assert "clock" not in found
    assert "gone.safetensors" in found["model sd"]["found"]
    assert found["model sd"]["state"] == "bad"
    (tmp_path / "out").write_text("a file")
    code, found = looked(tmp_path, SDBATCH_REDIS="")
    assert code == ExitCode.STORE
    assert "SDBATCH_STORE" in found["store"]["advice"]
    code, found = looked(tmp_path, SDBATCH_DTYPE="float8")
    assert code == ExitCode.BAD_INPUT
    assert found["settings"]["found"].startswith("SDBATCH_DTYPE: found 'float8'")
    assert [*found] == ["sdbatch", "settings"]


def test_a_table_for_people(tmp_path):
    done = run_command(["doctor"], os.environ | CACHE | {"SDBATCH_REDIS": ""}, tmp_path)
    header, *lines = done.stdout.splitlines()
    assert header.split("  ")[0] == "CHECK"
    assert "sdbatch local" in next(line for line in lines if line.startswith("queue"))


def test_clocks():
    assert clock(0.2).state is State.GOOD
    assert (clock(-60).state, clock(-60).found) == (State.LOOK, "60 s ahead of the queue's")
    late = clock(3600)
    assert (late.state, late.found) == (State.BAD, "3,600 s behind the queue's")
    assert late.advice


class Careless(LocalStore):
    """Keeps the last of two writes."""

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> bool:
        return super().put(key, data, overwrite=True)


@pytest.mark.parametrize("kind", [LocalStore, Careless])
def test_a_store_that_lets_the_last_writer_win_is_told(tmp_path, kind):
    found = store(lambda: ("here", kind(tmp_path / "new")))
    assert found.state is (State.GOOD if kind is LocalStore else State.LOOK)
    assert ("does not keep the first" in found.found) == (kind is Careless)
    assert not (tmp_path / "new").exists()
