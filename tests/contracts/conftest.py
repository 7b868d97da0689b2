"""Ledgers that the contracts are checked over.

The Redis ledger is checked twice: the second time over a connection that loses the first answer to
everything that is asked.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobs.ledger.memory.ledger import MemoryLedger
from jobs.ledger.redis.ledger import RedisLedger
from tests.ledgers import Clock, World
from tests.servers import LossyWire, client_at


@pytest.fixture(params=["memory", "redis", "redis, answers lost"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "memory":
        clock = Clock()
        ledger = MemoryLedger(clock)
        yield World(ledger, lambda: ledger, clock)
        return
    server = request.getfixturevalue("valkey")
    with server.client() as direct:
        direct.flushall()
        if request.param == "redis":
            yield World(RedisLedger(direct), lambda: RedisLedger(direct))
            return
        wire = LossyWire(server.port)
        with client_at(wire.port) as client:
            yield World(RedisLedger(client), lambda: RedisLedger(client))
        wire.close()


@pytest.fixture
def ledger(world: World) -> MemoryLedger | RedisLedger:
    return world.ledger
