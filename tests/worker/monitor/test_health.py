"""`/metrics` and `/healthz` over HTTP, on loopback."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest

from jobs.errors import ExitCode, InputError
from jobs.settings import Settings
from sd_core.engine.engine import MOST_COMPILE_S, Engine
from tests.servers import free_port
from tests.worker.serve.services import Service
from worker import process
from worker.monitor.health import STALLED_S, Health, Monitor
from worker.monitor.metrics import Metrics
from worker.monitor.presence import Reporter
from worker.serve.worker import Stopped


class Client:
    def __init__(self, port: int) -> None:
        self._port = port

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}") as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def health(self) -> tuple[int, dict[str, str]]:
        status, body = self.get("/healthz")
        return status, json.loads(body)


@pytest.fixture
def service(tmp_path):
    with Service(tmp_path) as service:
        yield service


@pytest.fixture
def reporter(service):
    return Reporter(service.worker, service.metrics)


@pytest.fixture
def health(service, reporter):
    health = Health("odd")
    health.watch(service.worker, reporter)
    return health


@pytest.fixture
def client(service, health):
    port = free_port()
    with Monitor(("127.0.0.1", port), service.metrics.registry, health):
        yield Client(port)


def test_metrics_are_served(client, service):
    service.enter()
    service.handle()
    status, text = client.get("/metrics")
    assert status == 200
    assert 'sdbatch_images_total{model="odd"} 2.0' in text
    assert "process_resident_memory_bytes" in text
    assert "python_info" in text


def test_nothing_else_is_there(client):
    for path in ("/", "/metrics/x", "/healthz2", "/../etc/passwd"):
        assert client.get(path)[0] == 404


def test_an_idle_and_a_draining_worker_are_well(client, service):
    assert client.health() == (200, {"status": "ok", "state": "idle", "model": "odd"})
    service.worker.drain()
    assert client.health() == (200, {"status": "ok", "state": "draining", "model": "odd"})


def test_a_worker_that_compiles_says_so_and_is_well(client, service, monkeypatch):
    monkeypatch.setattr(Engine, "compiling", True)
    monkeypatch.setattr(service.engine._loop, "_progressed_at", time.monotonic() - 2 * STALLED_S)
    assert client.health() == (200, {"status": "ok", "state": "compiling", "model": "odd"})
    long_ago = time.monotonic() - MOST_COMPILE_S - 2 * STALLED_S
    monkeypatch.setattr(service.engine._loop, "_progressed_at", long_ago)
    assert client.health()[0] == 503


def test_a_dead_engine_is_not(client, service):
    service.engine.close()
    status, document = client.health()
    assert status == 503
    assert document["status"] == "failing"
    assert document["reason"] == "the engine's thread has ended"


@pytest.mark.parametrize(("stalled_s", "expected"), [(STALLED_S - 1, 200), (STALLED_S, 503)])
def test_an_engine_that_hangs_is_not(client, service, monkeypatch, stalled_s, expected):
    monkeypatch.setattr(service.engine, "stalled_s", lambda: stalled_s)
    status, document = client.health()
    assert status == expected
    assert ("no progress for 120 s" in document.get("reason", "")) is (expected == 503)


def test_a_worker_without_one_of_its_threads_is_not(client, service, reporter, health):
    go_on = threading.Event()
    threads = [threading.Thread(target=go_on.wait, name=name) for name in ("heart", "reconcile")]
    health.watch(service.worker, reporter, threads)
    for thread in threads:
        thread.start()
    assert client.health()[0] == 200
    go_on.set()
    for thread in threads:
        thread.join()
    status, document = client.health()
    assert (status, document["reason"]) == (503, "the thread heart has ended")
    service.worker.drain()  # where they are told to end
    assert client.health()[0] == 200


def test_a_worker_that_stopped_says_why(client, service):
    service.worker.stop(Stopped("the store is away", ExitCode.STORE))
    status, document = client.health()
    assert status == 503
    assert (document["state"], document["reason"]) == ("stopped", "the store is away")


def test_a_ledger_that_is_away_is_told_but_no_reason_to_restart(client, reporter):
    reporter.away = "redis at 127.0.0.1:1 does not answer"
    status, document = client.health()
    assert (status, document["status"]) == (200, "ok")
    assert document["ledger"] == "redis at 127.0.0.1:1 does not answer"


def test_before_the_model_is_loaded_it_is_starting():
    assert Health("odd").document() == (200, {"status": "ok", "state": "starting", "model": "odd"})


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = other.getsockname()
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{address[1]}: "):
            Monitor(address, Metrics("odd").registry, Health("odd"))


def test_a_worker_does_not_start_where_its_port_is_taken(caplog):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = other.getsockname()
        with pytest.raises(SystemExit) as ended:
            process.start(Settings(metrics=address), "w1")
    assert ended.value.code == ExitCode.BAD_INPUT
    assert f"SDBATCH_METRICS: cannot listen on 127.0.0.1:{address[1]}: " in caplog.text
    with pytest.raises(RuntimeError, match="no worker"):
        process.worker()


def test_a_host_that_is_not_here_is_named():
    with pytest.raises(InputError, match=r"cannot listen on 192\.0\.2\.1:9400: "):
        Monitor(("192.0.2.1", 9400), Metrics("odd").registry, Health("odd"))
