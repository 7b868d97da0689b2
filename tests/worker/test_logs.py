"""Log lines: fields, one line each, and no password; and a real worker that writes them."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings

import pytest

from jobs.errors import StoreError
from tests.worker.serve.services import Service
from worker import logs
from worker.logs import JsonFormatter, TextFormatter

log = logging.getLogger("worker.test")


class Lines:
    """What was logged, through a formatter of ours."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def json(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.text().splitlines()]

    def text(self) -> str:
        return self.stream.getvalue()


@pytest.fixture
def attach():
    """Sends all lines to a formatter."""
    root, level = logging.getLogger(), logging.getLogger().level
    handlers = []

    def to(formatter: logging.Formatter) -> Lines:
        lines = Lines()
        handlers.append(logging.StreamHandler(lines.stream))
        handlers[-1].setFormatter(formatter)
        root.addHandler(handlers[-1])
        root.setLevel(logging.INFO)
        return lines

    yield to
    for handler in handlers:
        root.removeHandler(handler)
    root.setLevel(level)


def test_a_json_line_has_the_fields_around_it(attach):
    lines = attach(JsonFormatter("w1"))
    with logs.context(job="shapes-1", shard=0):
        log.info("claimed, %d images", 3)
        with logs.context(image=7):
            log.warning("image failed")
        log.info("released")
    log.info("idle", extra={"job": "other"})
    first, second, third, last = lines.json()
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "INFO",
        "logger": "worker.test",
        "message": "claimed, 3 images",
        "job": "shapes-1",
        "shard": 0,
        "owner": "w1",
    }
    assert (second["job"], second["shard"], second["image"]) == ("shapes-1", 0, 7)
    assert "image" not in third
    assert (last["job"], "shard" in last) == ("other", False)


def test_a_text_line_ends_with_them(attach):
    lines = attach(TextFormatter())
    with logs.context(job="shapes-1", shard=0, image=7):
        log.warning("image failed")
    log.info("idle")
    first, second = lines.text().splitlines()
    assert first.endswith(" WARNING worker.test: image failed [job=shapes-1 shard=0 image=7]")
    assert second.endswith(" INFO worker.test: idle")


def test_a_traceback_is_one_line_of_json(attach):
    lines = attach(JsonFormatter("w1"))
    try:
        raise ValueError("redis://:hunter2@queue is\nwrong")
    except ValueError:
        log.exception("oh\nno")
    (line,) = lines.json()
    assert line["message"] == "oh\nno"
    assert "ValueError: redis://***@queue is\nwrong" in line["exception"]
    assert "hunter2" not in lines.text()


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter("w1")])
@pytest.mark.parametrize(
    "secret",
    [
        "redis://:hunter2@queue:6379/0",
        "rediss://me:hunter2@queue",
        "redis://me:hun@hunter2@queue/0",
        "redis+sentinel://:hunter2@a:1,b:2/main",
        "sentinel://:hunter2@a:1;sentinel://:hunter2@b:2",
        "rediss://queue/0?password=hunter2&db=1",
        "{'host': 'queue', 'password': 'hunter2'}",
        'SDBATCH_WEBHOOK_SECRET="hunter2"',
    ],
)
def test_passwords_are_masked(attach, formatter, secret):
    lines = attach(formatter)
    log.error("cannot reach %s, trying again", secret)
    assert "hunter2" not in lines.text()
    assert "***" in lines.text()
    assert "trying again" in lines.text()


def test_lines_of_the_finishing_threads_know_their_image(attach, tmp_path):
    lines = attach(JsonFormatter("w1"))
    with Service(tmp_path) as service:
        service.enter()
        put = service.store.put

        def told(key, data, **options):
            if "/images/" in key:
                logging.getLogger("jobs.storage").warning("slow: %s", threading.current_thread())
            return put(key, data, **options)

        service.store.put = told
        with logs.context(job="job", shard=1):
            service.handle(number=1)
    slow = [line for line in lines.json() if line["logger"] == "jobs.storage"]
    assert sorted(line["image"] for line in slow) == [2, 3]
    assert all((line["job"], line["shard"]) == ("job", 1) for line in slow)
    assert all("sdbatch-finish" in line["message"] for line in slow)


def test_a_failed_image_is_a_line_with_its_reason(attach, tmp_path, monkeypatch):
    lines = attach(JsonFormatter("w1"))

    def broken(*_):
        raise ArithmeticError("no longer finite")

    with Service(tmp_path) as service:
        service.enter()
        monkeypatch.setattr(service.engine.model, "denoise", broken)
        service.handle()
    failed = [line for line in lines.json() if line["level"] == "WARNING"]
    assert sorted(line["image"] for line in failed) == [0, 1]
    assert {line["message"] for line in failed} == {"image failed: no longer finite"}


def test_a_failed_shard_is_a_line_without_a_password(attach, tmp_path):
    lines = attach(TextFormatter())
    with Service(tmp_path) as service:
        service.enter()
        service.store.broken = True
        service.store.error = StoreError("http://me:hunter2@store does not answer")
        service.handle()
    assert "the shard failed: http://***@store does not answer" in lines.text()


@pytest.fixture
def process_logging(monkeypatch):
    """`logs.set_up` changes the whole process; all of it is put back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    quiet = {name: logging.getLogger(name).level for name in logs.QUIET}
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    # So that `basicConfig(force=True)` does not close pytest's own handlers.
    root.handlers = []
    yield
    logging.captureWarnings(False)
    root.handlers, root.level = handlers, level
    for name, before in quiet.items():
        logging.getLogger(name).setLevel(before)


def test_errors_nobody_caught_and_warnings_are_lines_too(process_logging, monkeypatch):
    lines = Lines()
    monkeypatch.setattr(sys, "stderr", lines.stream)
    logs.set_up("json", "w1")

    def fail():
        raise RuntimeError("a bug")

    thread = threading.Thread(target=fail, name="sdbatch-heart")
    thread.start()
    thread.join()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old\nthing", stacklevel=1)
    first, second = lines.json()
    assert first["message"] == "thread sdbatch-heart ended by RuntimeError"
    assert "RuntimeError: a bug" in first["exception"]
    assert second["logger"] == "py.warnings"
    assert "old\nthing" in second["message"]
