"""From an address to a client of a Redis or Valkey server."""

from __future__ import annotations

from typing import Any

from redis import Redis, Sentinel
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs.ledger.redis.address import parse_address

TIMEOUT_S = 5.0
"""For connecting, and for each answer; `?socket_timeout=` in the URL is stronger."""


def connect(url: str) -> Redis:
    """A client; nothing is contacted yet. Raises `LedgerError`.

    url: as `parse_address` takes it.
    """
    address = parse_address(url)
    given: dict[str, Any] = {
        "db": address.db,
        "username": address.username,
        "password": address.password,
        **({"ssl": True} if address.tls else {}),
        **address.options,
    }
    if address.service is not None:
        sentinels = Sentinel(address.hosts, sentinel_kwargs=_options())
        return sentinels.master_for(address.service, **(_options() | given))
    if address.path is not None:
        return Redis(unix_socket_path=address.path, **(_options(tcp=False) | given))
    ((host, port),) = address.hosts
    return Redis(host=host, port=port, **(_options() | given))


def _options(*, tcp: bool = True) -> dict[str, Any]:
    options = {
        "socket_timeout": TIMEOUT_S,
        "socket_connect_timeout": TIMEOUT_S,
        "health_check_interval": 25,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),  # `jobs.ledger.redis.server` asks again
    }
    return options | {"socket_keepalive": True} if tcp else options
