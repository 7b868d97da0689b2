"""A stand-in for the Hugging Face hub: the few endpoints that a download asks, over a folder."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class HubServer(ThreadingHTTPServer):
    """repos: `owner/name` -> folder. refs: branch or tag -> commit, the same for every repository.

    downloads: paths whose content was sent, in order.
    """

    daemon_threads = True

    def __init__(self, repos: dict[str, Path], refs: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = repos
        self.refs = refs
        self.downloads: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        for pattern, answer in ((_TREE, self.tree), (_INFO, self.info), (_FILE, self.file)):
            match = pattern.fullmatch(path)
            if match is None:
                continue
            folder = self.server.repos.get(match["repo"])
            commit = self.server.refs.get(match["revision"] or "main", match["revision"])
            if folder is None:
                self.reply(401, error="RepoNotFound")
            elif commit not in self.server.refs.values():
                self.reply(404, error="RevisionNotFound")
            elif match["repo"].startswith("gated/") and pattern is _FILE:
                self.reply(403, error="GatedRepo")
            else:
                answer(match, folder, commit)
            return
        self.reply(404)

    def info(self, match: re.Match[str], folder: Path, commit: str) -> None:
        files = [{"rfilename": name} for name in _names(folder)]
        repo = match["repo"]
        self.reply_json({"id": repo, "modelId": repo, "sha": commit, "siblings": files})

    def tree(self, match: re.Match[str], folder: Path, commit: str) -> None:
        self.reply_json(
            [
                {"type": "file", "path": name, "size": size, "oid": _digest(folder / name)}
                for name in _names(folder)
                for size in [(folder / name).stat().st_size]
            ]
        )

    def file(self, match: re.Match[str], folder: Path, commit: str) -> None:
        path = folder / match["path"]
        if not path.is_file():
            self.reply(404, error="EntryNotFound")
            return
        if self.command == "GET":
            self.server.downloads.append(match["path"])
        headers = {"ETag": f'"{_digest(path)}"', "X-Repo-Commit": commit}
        self.reply(200, path.read_bytes(), headers=headers)

    def reply_json(self, value: object) -> None:
        self.reply(200, json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def reply(
        self,
        status: int,
        body: bytes = b"",
        *,
        error: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if error is not None:
            self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent; a failing test shows what was asked by itself."""


def _names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def running_hub(repos: dict[str, Path], refs: dict[str, str]) -> Iterator[HubServer]:
    """Serves on a free loopback port until the block is left."""
    with HubServer(repos, refs) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
