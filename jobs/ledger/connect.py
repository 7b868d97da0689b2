"""From a URL to a client of a Redis or Valkey server."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from redis import Redis, Sentinel
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from jobs.errors import LedgerError

TIMEOUT_S = 5.0
"""For connecting, and for each answer; `?socket_timeout=` in the URL is stronger."""

SENTINEL = "redis+sentinel"
SENTINEL_PORT = 26379


def connect(url: str) -> Redis:
    """A client; nothing is contacted yet. Raises `LedgerError`, which never repeats a password.

    url: `redis://[user:password@]host[:port][/db]`, the same with `rediss://` for TLS,
    `unix://[user:password@]/socket[?db=n]`, or with `redis+sentinel://`
    `[user:password@]host[:port],host[:port],…/service[/db]`, where user and password are those of
    the servers, not of the Sentinels. Options of redis-py follow as `?ssl_ca_certs=…&…`.
    """
    try:
        scheme = urlsplit(url).scheme
        if scheme == SENTINEL:
            return _sentinel(url)
        return Redis.from_url(url, **_options(tcp=scheme != "unix"))
    except (ValueError, TypeError):
        # The original error may quote a password that was taken for a port or a host.
        raise LedgerError(
            "the ledger's address is no valid URL; see that it has the form "
            "redis://user:password@host:port/0, with / @ : # and ? in the password written "
            "%2F %40 %3A %23 and %3F"
        ) from None


def _options(*, tcp: bool = True) -> dict[str, Any]:
    options = {
        "socket_timeout": TIMEOUT_S,
        "socket_connect_timeout": TIMEOUT_S,
        "health_check_interval": 25,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),  # `jobs.ledger.server` asks again
    }
    return options | {"socket_keepalive": True} if tcp else options


def _sentinel(url: str) -> Redis:
    parts = urlsplit(url)
    userinfo, at, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    addresses = [_address(host) for host in hosts.split(",")]
    if not service:
        raise LedgerError(
            f"the ledger's address names no service of the Sentinels: {SENTINEL}://host:port/service"
        )
    # The rest is read as redis-py reads it; the host is only there to complete the URL.
    servers: dict[str, Any] = dict(
        parse_url(f"redis://{userinfo}{at}sentinel/{int(db or 0)}?{parts.query}")
    )
    del servers["host"]
    options = _options() | servers
    sentinels = Sentinel(addresses, sentinel_kwargs=_options())
    return sentinels.master_for(service, **options)


def _address(host: str) -> tuple[str, int]:
    """Host and port of `host`, `host:port` or `[v6]:port`."""
    parts = urlsplit(f"//{host}")
    if not parts.hostname:
        raise ValueError("a host is empty")
    return parts.hostname, parts.port or SENTINEL_PORT
