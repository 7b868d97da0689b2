"""HTTP server of a worker: `/metrics` for Prometheus, `/healthz` for a supervisor."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Sequence
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, MetricsHandler

from jobs.errors import InputError
from jobs.formatting import reason
from worker.monitor.presence import Reporter
from worker.serve.worker import Worker

STALLED_S = 120.0
"""An engine with work that has not moved on for so long counts as hung."""


class Health:
    """Tells whether a restart would help. Until `watch`, the worker is still loading its model.

    starting: what it is at until then.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self.starting = "starting"
        self._watched: tuple[Worker, Reporter] | None = None
        self._threads: Sequence[threading.Thread] = ()

    def watch(
        self, worker: Worker, reporter: Reporter, threads: Sequence[threading.Thread] = ()
    ) -> None:
        """From now on, this is the worker that is asked about. threads: without any of these it is
        of no use.
        """
        self._threads = threads
        self._watched = worker, reporter

    def document(self) -> tuple[int, dict[str, Any]]:
        """The HTTP status, 200 or 503, and what to say with it.

        With the ledger unreachable it stays 200: another process would not reach it either.
        """
        if self._watched is None:
            return 200, {"status": "ok", "state": self.starting, "model": self._model}
        worker, reporter = self._watched
        trouble = _trouble(worker, self._threads)
        document: dict[str, Any] = {
            "status": "ok" if trouble is None else "failing",
            "state": worker.state.partition(":")[0],
            "model": self._model,
        }
        if trouble is not None:
            document["reason"] = trouble
        if reporter.away is not None:
            document["ledger"] = reporter.away
        return (200 if trouble is None else 503), document


def _trouble(worker: Worker, threads: Sequence[threading.Thread]) -> str | None:
    if worker.stopped is not None:
        return worker.stopped.why
    if not worker.engine.alive:
        return "the engine's thread has ended"
    if not worker.draining.is_set():  # at its end they are told to end
        for thread in threads:
            if not thread.is_alive():
                return f"the thread {thread.name} has ended"
    stalled_s = worker.engine.stalled_s()
    if stalled_s >= STALLED_S:
        return f"the engine has work and made no progress for {stalled_s:.0f} s"
    return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_port = False  # a second worker on the same port is a mistake


class _Server6(_Server):
    address_family = socket.AF_INET6


class Monitor:
    """Answers at host and port, on threads of its own. A context manager.

    Raises `InputError` if it cannot listen there.
    """

    def __init__(
        self, address: tuple[str, int], registry: CollectorRegistry, health: Health
    ) -> None:
        host, port = address

        class Handler(MetricsHandler):
            def do_GET(self) -> None:  # noqa: N802 - http.server's name
                path = urlsplit(self.path).path
                if path == "/metrics":
                    super().do_GET()
                elif path == "/healthz":
                    self._answer(*health.document())
                else:
                    self._answer(404, {"error": "there are /metrics and /healthz"})

            def _answer(self, status: int, document: dict[str, Any]) -> None:
                body = json.dumps(document).encode() + b"\n"
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        Handler.registry = registry
        try:
            server = _Server6 if ":" in host else _Server
            self._server = server((host, port), Handler)
        except OSError as error:
            raise InputError(
                f"SDBATCH_METRICS: cannot listen on {host}:{port}: {reason(error)}; "
                "give each worker of a machine its own port"
            ) from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="sdbatch-monitor", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
