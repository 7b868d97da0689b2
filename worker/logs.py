"""Log lines of a worker process: text for people, or one JSON object a line.

Each line says which job, shard and image it is about, from `context` around the work; threads get
it by running in `contextvars.copy_context()`. Passwords of URLs are masked in every line, also in
those of libraries.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType, TracebackType
from typing import Any

FIELDS = ("job", "shard", "image")
"""Names that `context` and a logging call's `extra` may give."""

# Celery says twice for each message what this worker says better.
QUIET = ("celery.worker.strategy", "celery.app.trace")

_context: ContextVar[Mapping[str, object]] = ContextVar(
    "sdbatch_log_context", default=MappingProxyType({})
)

# Up to the last @ of what may be a URL: a password may hold any character that nobody encoded.
_USERINFO = re.compile(r"(?<=://)\S*@")
_NAMED = re.compile(r"(?i)((?:password|passwd|secret)[\"']?\s*[=:]\s*)([\"']?)[^&\s,;\"']+")


@contextlib.contextmanager
def context(**fields: object) -> Iterator[None]:
    """Adds these of `FIELDS` to all lines that are logged inside, by this thread."""
    token = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def masked(text: str) -> str:
    """Without what may be a password: user information of URLs, and `password=…`."""
    return _NAMED.sub(r"\1\2***", _USERINFO.sub("***@", text))


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    given = {**_context.get(), **vars(record)}
    return {name: given[name] for name in FIELDS if given.get(name) is not None}


class TextFormatter(logging.Formatter):
    """`time level logger: message [job=… shard=… image=…]`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        line = super().formatMessage(record)
        fields = " ".join(f"{name}={value}" for name, value in _fields_of(record).items())
        return f"{line} [{fields}]" if fields else line

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


class JsonFormatter(logging.Formatter):
    """One object a line; a traceback is the text in `exception`. owner: of this worker."""

    def __init__(self, owner: str) -> None:
        super().__init__()
        self._owner = owner

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": masked(record.getMessage()),
            **_fields_of(record),
            "owner": self._owner,
        }
        if record.exc_info:
            line["exception"] = masked(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = masked(self.formatStack(record.stack_info))
        return json.dumps(line, default=str)


def set_up(form: str, owner: str) -> None:
    """Sends all lines of this process to stderr, those of warnings and uncaught errors too.

    form: text or json (`Settings.log`).
    """
    formatter = JsonFormatter(owner) if form == "json" else TextFormatter()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger(__name__).critical("uncaught %s", kind.__name__, exc_info=error)


def _uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    thread = "a thread" if arguments.thread is None else f"thread {arguments.thread.name}"
    logging.getLogger(__name__).critical(
        "%s ended by %s", thread, arguments.exc_type.__name__, exc_info=arguments.exc_value
    )


def say(message: str, _: object = None) -> None:
    """A line from a signal handler, which may have interrupted a logging call: straight to stderr
    in the form that was set up. In place of Celery's `safe_say`, which prints bare text.
    """
    record = logging.LogRecord("celery", logging.INFO, __file__, 0, message, None, None)
    handlers = logging.getLogger().handlers
    line = handlers[0].format(record) if handlers else message
    with contextlib.suppress(OSError):
        os.write(2, line.encode() + b"\n")
