"""Wires to real servers that can be cut, and on the way to S3 be slow or fail."""

from __future__ import annotations

import contextlib
import http.client
import random
import select
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
UNAVAILABLE = b"<Error><Code>ServiceUnavailable</Code><Message>a test says so</Message></Error>"


class Wire:
    """Passes bytes to a server on loopback and back, until it is cut; then new ones may come."""

    def __init__(self, port: int) -> None:
        self._server = ("127.0.0.1", port)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        """Ends all connections, as a switch that is restarted does; how many there were."""
        with self._lock:
            cut = list(self._open)
        for connection in cut:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        return len(cut)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
        try:
            with client, socket.create_connection(self._server) as server:
                other = {client: server, server: client}
                while True:
                    for readable in select.select(list(other), [], [])[0]:
                        data = readable.recv(65536)
                        if not data:
                            return
                        other[readable].sendall(data)
        except OSError:  # cut, or the server is gone
            pass
        finally:
            with self._lock:
                self._open.discard(client)


@dataclass(frozen=True)
class Weather:
    """What PUTs meet: shares of them that are answered 500 or 503, or cut off before or after
    the server has done the work; the longest delay in seconds.
    """

    failing: float = 0.0
    cut: float = 0.0
    delay_s: float = 0.0


class S3Wire:
    """An HTTP proxy in front of an S3 server that counts the images which were really written.

    weather: may be changed at any time. written: path of an image -> PUTs that the server took.
    """

    def __init__(self, port: int, rng: random.Random) -> None:
        self.weather = Weather()
        self.written: Counter[str] = Counter()
        self.met: Counter[str] = Counter()
        self._upstream = port
        self._rng = rng
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        wire = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                with wire._lock:
                    wire._open.add(self.connection)

            def finish(self) -> None:
                with wire._lock:
                    wire._open.discard(self.connection)
                with contextlib.suppress(OSError):
                    super().finish()

            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    super().handle()

            def log_message(self, *_: object) -> None:
                pass

            def do(self) -> None:
                wire._serve(self)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = do  # noqa: N815 - by name

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> int:
        """Ends all connections; how many there were."""
        with self._lock:
            cut = list(self._open)
        for connection in cut:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        return len(cut)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.cut()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        fate = self._fate(handler.command)
        if fate == "fail":
            _answer(handler, self._rng.choice((500, 503)), {}, UNAVAILABLE)
            return
        if fate == "cut before":
            handler.close_connection = True
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self._upstream)
        try:
            headers = {k: v for k, v in handler.headers.items() if k.lower() != "expect"}
            upstream.request(handler.command, handler.path, body, headers)
            answer = upstream.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException):  # stopped, or cut in between
            handler.close_connection = True
            return
        finally:
            upstream.close()
        path = handler.path.partition("?")[0]
        if handler.command == "PUT" and answer.status == 200 and "/images/" in path:
            with self._lock:
                self.written[path] += 1
        if fate == "cut after":
            handler.close_connection = True
            return
        _answer(handler, answer.status, dict(answer.getheaders()), data)

    def _fate(self, command: str) -> str:
        weather = self.weather
        if command != "PUT" or weather == Weather():
            return "pass"
        with self._lock:
            draw, delay_s = self._rng.random(), self._rng.uniform(0, weather.delay_s)
        fate = "pass"
        if draw < weather.failing:
            fate = "fail"
        elif draw < weather.failing + weather.cut:
            fate = "cut before" if draw < weather.failing + weather.cut / 2 else "cut after"
        with self._lock:
            self.met[fate] += 1
        time.sleep(delay_s)
        return fate


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Connections end here all the time."""


def _answer(
    handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes
) -> None:
    handler.send_response_only(status)
    length = str(len(body))
    for name, value in headers.items():
        if handler.command == "HEAD" and name.lower() == "content-length":
            length = value
        elif name.lower() not in HOP_BY_HOP:
            handler.send_header(name, value)
    handler.send_header("Content-Length", length)
    handler.end_headers()
    if handler.command != "HEAD" and status not in (204, 304):
        handler.wfile.write(body)
