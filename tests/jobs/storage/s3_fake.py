"""A stand-in for an S3 server that fails as told, in the ways that no real one does on request."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit
from xml.sax.saxutils import escape

METADATA = "x-amz-meta-"
PIECE_BYTES = 2**16


@dataclass(frozen=True)
class Answer:
    """What is said instead of doing what was asked.

    code: None leaves out the body that S3 sends with its errors. cut: bytes of the body that are
    not sent before the connection closes. sized: the body's length is announced; else it comes in
    chunks.
    """

    status: int
    code: str | None = None
    message: str = "in other words"
    detail: str = ""  # XML
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int = 0
    sized: bool = True

    def content(self) -> bytes:
        if self.code is None:
            return self.body
        return (
            f"<Error><Code>{self.code}</Code><Message>{escape(self.message)}</Message>"
            f"{self.detail}</Error>"
        ).encode()


LOST = "does what was asked, and closes the connection without an answer"
CUT = "does what was asked, and sends only a part of the answer's body"


class FakeS3(ThreadingHTTPServer):
    """Objects of any bucket in memory.

    condition: what becomes of If-None-Match: honoured, ignored, or late (looked at before the
    body is read, so that every writer in a race gets past it).
    script: method -> what happens to the next requests, None being what was asked for.
    always: method -> what happens to the requests after those. seen: (method, path and query).
    sent_bytes: of bodies.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.condition = "honoured"
        self.script: dict[str, deque[Answer | str | None]] = defaultdict(deque)
        self.always: dict[str, Answer | str] = {}
        self.seen: list[tuple[str, str]] = []
        self.sent_bytes = 0
        self.racers: threading.Barrier | None = None
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def count(self, method: str) -> int:
        return sum(1 for seen, _ in self.seen if seen == method)

    def handle_error(self, request, client_address) -> None:
        """Silent: clients may hang up."""


class _Handler(BaseHTTPRequestHandler):
    server: FakeS3
    protocol_version = "HTTP/1.1"

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            self.server.seen.append((self.command, self.path))
            script = self.server.script[self.command]
            fault = script.popleft() if script else self.server.always.get(self.command)
        if isinstance(fault, Answer):
            self.reply(fault, cut=fault.cut)
            return
        answer = getattr(self, self.command.lower())(body)
        if fault == LOST:
            self.close_connection = True
            return
        self.reply(answer, cut=1 if fault == CUT else 0)

    do_GET = do_HEAD = do_PUT = do_DELETE = do  # noqa: N815 - the names http.server wants

    @property
    def name(self) -> str:
        return unquote(urlsplit(self.path).path)

    def put(self, body: bytes) -> Answer:
        if "If-None-Match" in self.headers and self.server.condition != "ignored":
            taken = self.name in self.server.objects
            racers = self.server.racers
            if self.server.condition == "late" and racers is not None and not taken:
                racers.wait(timeout=20)
            with self.server.lock:
                if taken or (self.server.condition == "honoured" and self.exists()):
                    return Answer(412, "PreconditionFailed")
                self.store(body)
            return Answer(200)
        with self.server.lock:
            self.store(body)
        return Answer(200)

    def exists(self) -> bool:
        return self.name in self.server.objects

    def store(self, body: bytes) -> None:
        kept = {k: v for k, v in self.headers.items() if k.lower().startswith(METADATA)}
        self.server.objects[self.name] = (body, kept)

    def get(self, _: bytes) -> Answer:
        if "list-type=2" in self.path:
            return Answer(
                200, body=b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
            )
        if not self.exists():
            return Answer(404, "NoSuchKey")
        body, headers = self.server.objects[self.name]
        return Answer(200, body=body, headers=headers)

    head = get

    def delete(self, _: bytes) -> Answer:
        self.server.objects.pop(self.name, None)
        return Answer(204)

    def reply(self, answer: Answer, *, cut: int = 0) -> None:
        content = answer.content()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if not answer.sized:
            self.send_header("Transfer-Encoding", "chunked")
        elif answer.status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD" and answer.status != 204:
            self.send(content[: len(content) - cut], chunked=not answer.sized)
        self.close_connection = self.close_connection or bool(cut)

    def send(self, content: bytes, *, chunked: bool) -> None:
        """Piece by piece, and counted, until the client hangs up."""
        for start in range(0, len(content), PIECE_BYTES):
            piece = content[start : start + PIECE_BYTES]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            with self.server.lock:
                self.server.sent_bytes += len(piece)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Silent; a failing test shows what was asked by itself."""


@contextmanager
def running_fake() -> Iterator[FakeS3]:
    """Serves on a free loopback port until the block is left."""
    with FakeS3() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
