"""A real Valkey with the users of `infra/redis/users.acl`."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.servers import Valkey, client_at

USERS_FILE = Path(__file__).parents[1] / "infra/redis/users.acl"
USERS = ("submit", "work", "watch")


class GuardedValkey(Valkey):
    """Without a user named, one is its admin. A user's password is its own short name."""

    def __init__(self, folder: Path) -> None:
        if "SDBATCH_TEST_REDIS" in os.environ:
            pytest.skip("the users are for Valkey, or Redis 7.2 and later")
        path = folder / "users.acl"
        path.write_text(re.sub(r"SHA256_OF_(\w+)_PASSWORD", _digest, USERS_FILE.read_text()))
        super().__init__(folder, "--aclfile", str(path))

    @property
    def url(self) -> str:
        return f"redis://default:admin@127.0.0.1:{self.port}/0"

    def url_of(self, user: str) -> str:
        return f"redis://sdbatch-{user}:{user}@127.0.0.1:{self.port}/0"

    def client(self, **options: Any) -> redis.Redis:
        return client_at(self.port, **({"password": "admin"} | options))

    def client_of(self, user: str) -> redis.Redis:
        return self.client(username=f"sdbatch-{user}", password=user)

    def refused(self) -> list[tuple[str, str, str]]:
        """User, kind and name of what was refused since the last call."""
        with self.client() as client:
            found = client.acl_log()
            client.acl_log_reset()
        return [(entry["username"], entry["reason"], entry["object"]) for entry in found]


def _digest(match: re.Match[str]) -> str:
    return hashlib.sha256(match[1].lower().encode()).hexdigest()
