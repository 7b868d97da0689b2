"""The server as a process has it: its socket, its thread, the stream of events, its end."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from urllib.request import Request, urlopen

import pytest

from jobs.cli import dashboard as command
from jobs.dashboard import hub
from jobs.dashboard.server import Place, Running, serving
from jobs.errors import ExitCode, InputError
from jobs.ledger.memory.ledger import MemoryLedger
from jobs.settings import Settings
from jobs.storage import LocalStore, open_store
from tests.commands import run_command
from tests.jobs.dashboard.world import TOKEN
from tests.ledgers import new_job, take
from tests.servers import wait_for

PATIENCE_S = 60


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def running(ledger: MemoryLedger) -> Iterator[Running]:
    with serving(Place("127.0.0.1", 0, TOKEN), ledger, open_store) as running:
        yield running


def base(running: Running) -> str:
    return running.address.partition("/#")[0]


class Events:
    """The stream, read one message after the other."""

    def __init__(self, running: Running) -> None:
        self._stream = urlopen(f"{base(running)}/api/events", timeout=PATIENCE_S)
        assert self._stream.headers["content-type"].startswith("text/event-stream")

    def next(self, *names: str):
        """Values of the next message of one of these names; None at the stream's end."""
        while name := self._stream.readline().decode():
            data = self._stream.readline().decode()
            assert self._stream.readline() == b"\n"
            if name.removeprefix("event: ").strip() in names:
                return json.loads(data.removeprefix("data: "))
        return None


def test_an_event_of_the_ledger_reaches_all_who_listen(running, ledger):
    ledger.create(new_job())
    listeners = [Events(running), Events(running)]
    for events in listeners:
        assert events.next("ledger") == {"error": None}
        assert events.next("workers") == []  # so it looks now
    ledger.settle(take(ledger, 0), [2])
    for events in listeners:
        assert events.next("jobs")[0]["done"] == 1
        assert events.next("pictures")[0]["index"] == 2


def test_nobody_looks_while_nobody_listens(running, ledger, monkeypatch):
    looked = threading.Event()
    news = ledger.news

    def seen(*args, **options):
        looked.set()
        return news(*args, **options)

    monkeypatch.setattr(ledger, "news", seen)
    assert urlopen(f"{base(running)}/api/jobs").status == 200
    assert not looked.is_set()
    events = Events(running)
    wait_for(looked.is_set, "a look")
    del events


def test_what_nobody_foresaw_ends_no_look(running, ledger, monkeypatch, caplog):
    news, calls = ledger.news, []

    def odd(*args, **options):
        calls.append(args)
        if len(calls) == 1:
            raise KeyError("odd")
        return news(*args, **options)

    monkeypatch.setattr(ledger, "news", odd)
    events = Events(running)
    assert events.next("workers") == []
    assert "looking at the ledger failed, trying again" in caplog.text


def test_its_end_ends_the_streams(ledger):
    with serving(Place("127.0.0.1", 0), ledger, open_store) as running:
        events = Events(running)
        events.next("ledger")
        assert running.alive()
    assert not running.alive()
    assert events.next("nothing") is None


def test_too_many_listeners(running, monkeypatch):
    monkeypatch.setattr(hub, "MOST_LISTENERS", 1)
    first = Events(running)
    first.next("ledger")
    with pytest.raises(OSError, match="503"):
        urlopen(f"{base(running)}/api/events")


def test_a_change_with_the_token(running, ledger):
    ledger.create(new_job())
    token = {"x-sdbatch-token": running.address.partition("token=")[2]}
    question = Request(f"{base(running)}/api/jobs/job/pause", method="POST", headers=token)
    assert json.load(urlopen(question))["said"] == "paused"


class TestPlace:
    def test_a_port_in_use(self, running, ledger):
        port = int(base(running).rpartition(":")[2])
        with (
            pytest.raises(InputError, match=f"port {port} of 127.0.0.1 is in use.*--port"),
            serving(Place("127.0.0.1", port), ledger, open_store),
        ):
            pass

    def test_on_the_command_line(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = run_command(["dashboard", "--port", str(port)], {})
        assert done.returncode == ExitCode.BAD_INPUT
        assert f"error: port {port} of 127.0.0.1 is in use" in done.stderr

    @pytest.mark.parametrize(
        ("host", "said"),
        [("192.0.2.1", "is no address of this machine"), ("no such.host", "is no address here")],
    )
    def test_hosts_that_are_not_here(self, ledger, host, said):
        with (
            pytest.raises(InputError, match=said),
            serving(Place(host, 0), ledger, open_store),
        ):
            pass


class TestCommand:
    def test_without_its_packages(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        monkeypatch.delitem(sys.modules, "jobs.dashboard.server")
        monkeypatch.delattr("jobs.dashboard.server")
        done = run_command(["dashboard"], {})
        assert done.returncode == ExitCode.BAD_INPUT
        assert "needs uvicorn, which is not installed" in done.stderr
        assert "pip install 'sdbatch[dashboard]'" in done.stderr

    @pytest.mark.parametrize("price", ["-1", "nan", "inf"])
    def test_odd_prices(self, price):
        done = run_command(["dashboard", "--price", price], {})
        assert done.returncode == ExitCode.BAD_INPUT
        assert "--price" in done.stderr

    @pytest.mark.parametrize("token", ["short", "with spaces " * 3, "ü" * 20, "x" * 201])
    def test_odd_tokens(self, token):
        done = run_command(["dashboard"], {"SDBATCH_DASHBOARD_TOKEN": token})
        assert done.returncode == ExitCode.BAD_INPUT
        assert "SDBATCH_DASHBOARD_TOKEN: expected 16 to 200" in done.stderr
        assert token not in done.stderr

    def test_stores_that_are_not_allowed(self, ledger, tmp_path):
        """A job may name any folder; the rule is that of workers."""
        allowed = Settings(stores=(str(tmp_path / "jobs"),), redis="memory://")
        with command.serving_page(allowed, "127.0.0.1", 0) as running:
            assert running.alive()
        open_one = command.opener_of(allowed)
        assert isinstance(open_one(str(tmp_path / "jobs/a")), LocalStore)
        with pytest.raises(InputError, match="SDBATCH_STORES does not allow"):
            open_one(str(tmp_path / "others"))
