"""What a Redis server may answer for a while, to anybody, instead of doing as it is told."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import redis

from tests.servers import wait_for
from tests.worker.serve.garbage import QUEUE


@dataclass(frozen=True)
class Refusal:
    """words: what a worker's log says then. begin, end: how a server is brought to it and back."""

    words: str
    begin: Callable[[redis.Redis], object]
    end: Callable[[redis.Redis], object]

    @contextlib.contextmanager
    def under_way(self, client: redis.Redis) -> Iterator[None]:
        self.begin(client)
        try:
            yield
        finally:
            self.end(client)


def _be_busy(client: redis.Redis) -> None:
    client.config_set("busy-reply-threshold", 1)

    def run() -> None:
        with contextlib.suppress(redis.RedisError):  # it is ended by one
            client.eval("while true do end", 0)

    threading.Thread(target=run, daemon=True).start()
    wait_for(lambda: _busy(client), "the script to be at it")


def _be_ready(client: redis.Redis) -> None:
    client.script_kill()
    wait_for(lambda: not _busy(client), "the end of the script")
    client.config_set("busy-reply-threshold", 5000)


def _busy(client: redis.Redis) -> bool:
    try:
        client.ping()
    except redis.ResponseError:
        return True
    return False


REFUSALS = {
    "full": Refusal(
        "it is full",
        lambda client: client.config_set("maxmemory", 1),
        lambda client: client.config_set("maxmemory", 0),
    ),
    "a replica": Refusal(
        "it is a read-only replica",
        lambda client: client.replicaof("127.0.0.1", 1),
        lambda client: client.replicaof("NO", "ONE"),
    ),
    "too few replicas": Refusal(
        "it has too few replicas",
        lambda client: client.config_set("min-replicas-to-write", 1),
        lambda client: client.config_set("min-replicas-to-write", 0),
    ),
    "busy": Refusal("it is busy with a script", _be_busy, _be_ready),
    "another type": Refusal(
        "wrong kind of value",
        lambda client: client.set(QUEUE, "x"),
        lambda client: client.delete(QUEUE),
    ),
    "no right": Refusal(
        "this user may not do that",
        lambda client: client.acl_setuser("default", enabled=True, commands=["-brpop"]),
        lambda client: client.acl_setuser("default", enabled=True, categories=["+@all"]),
    ),
}
