"""The command line on a real Valkey."""

from __future__ import annotations

import pytest

from jobs.ledger import open_ledger
from tests.jobs.cli.commanded import Commands


@pytest.fixture
def commands(tmp_path, capsys, valkey, monkeypatch):
    with valkey.client() as client:
        client.flushall()
    monkeypatch.setenv("SDBATCH_REDIS", valkey.url)
    return Commands(tmp_path, capsys, open_ledger(valkey.url))
