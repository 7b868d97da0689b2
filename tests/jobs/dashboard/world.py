"""A small world for tests of the page's server: a ledger, a store with pictures, a client."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.testclient import TestClient

from jobs.dashboard.access import TOKEN_HEADER, Access
from jobs.dashboard.app import Dashboard
from jobs.folder.layout import JobKeys
from jobs.folder.records import dump_lines
from jobs.ledger.memory.ledger import MemoryLedger
from jobs.storage import LocalStore
from tests.ledgers import Clock, new_job

TOKEN = "the-token-of-these-tests"
SHARD_ENDS = (4, 8, 10)


def picture(colour: str = "red", format: str = "PNG", size: tuple[int, int] = (640, 480)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format)
    return buffer.getvalue()


@dataclass
class World:
    """host, port: where the server would listen."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = 8484
    price: float | None = None
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.ledger = MemoryLedger(self.clock)
        self.store = LocalStore(self.folder)
        self.access = Access(self.host, self.port, TOKEN)
        self.dashboard = Dashboard(self.ledger, self.access, lambda address: self.store, self.price)
        self.client = self.another_client()

    def another_client(self) -> TestClient:
        """Another browser."""
        base = f"http://{self.host}:{self.port}"
        return TestClient(self.dashboard.app, base_url=base, raise_server_exceptions=False)

    def enter(self, job_id: str = "job", **values: Any) -> None:
        """A job of ten images; its store is that of all jobs here."""
        self.ledger.create(new_job(job_id, SHARD_ENDS, **values))
        self.clock.now_s += 1

    def store_images(self, *indices: int, job_id: str = "job", **values: Any) -> None:
        """Pictures with their records, as a worker leaves them before it settles."""
        keys = JobKeys(job_id)
        for index in indices:
            shard = next(n for n, end in enumerate(SHARD_ENDS) if index < end)
            path = f"images/{index:06d}.png"
            self.store.put(keys(path), picture(), overwrite=True)
            record = {"index": index, "path": path, "prompt": f"picture {index}", "seed": index}
            record |= {"sha256": f"{index:064x}", "width": 640, "height": 480, **values}
            key = keys.records(shard)
            known = self.store.get(key) if self.store.head(key) else b""
            self.store.put(key, known + dump_lines([record]), overwrite=True)

    def get(self, path: str, status: int = 200) -> Any:
        """JSON of an answer that has this status."""
        answer = self.client.get(path)
        assert answer.status_code == status, answer.text
        return answer.json()

    def post(self, path: str, token: str | None = TOKEN, **headers: str) -> Any:
        """The answer to a change."""
        given = headers if token is None else {TOKEN_HEADER: token, **headers}
        return self.client.post(path, headers=given)
