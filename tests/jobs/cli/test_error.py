"""What commands say of a job that cannot run."""

from __future__ import annotations

import json

import pytest

from jobs.cli.root import main
from jobs.ledger import open_ledger
from tests.ledgers import new_job

ERROR = "w1: /srv/out/job has no plan"


@pytest.fixture
def ledger(valkey, monkeypatch):
    with valkey.client() as client:
        client.flushall()
    monkeypatch.setenv("SDBATCH_REDIS", valkey.url)
    ledger = open_ledger(valkey.url)
    ledger.create(new_job())
    return ledger


def test_status_and_jobs_name_the_last_error(ledger, capsys):
    for command in (["status", "job"], ["jobs"]):
        assert main(command) == 0
        assert "last error" not in capsys.readouterr().out
    ledger.note_error("job", ERROR)
    assert main(["status", "job"]) == 0
    assert f"last error   {ERROR}\n" in capsys.readouterr().out
    assert main(["jobs"]) == 0
    assert capsys.readouterr().out.endswith(f"\njob: last error: {ERROR}\n")


def test_so_do_they_in_json(ledger, capsys):
    ledger.note_error("job", ERROR)
    assert main(["status", "job", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["error"] == ERROR
    assert main(["jobs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["jobs"][0]["error"] == ERROR
