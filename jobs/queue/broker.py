"""The broker's address as Celery wants it, from the one that the ledger takes.

Celery calls some things otherwise, and some it takes to be less safe: without `ssl_cert_reqs` in a
rediss:// URL it would not look at the server's certificate at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from jobs.ledger.redis.address import RedisAddress, bracketed, parse_address

TRANSPORT_OPTIONS: Mapping[str, Any] = {
    # A message is acknowledged once its shard is released. One that was popped by a worker that
    # died is published again by the ledger, long before this timeout would.
    "visibility_timeout": 7200,
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 25,
}

_OPTIONS = (
    *("socket_timeout", "socket_connect_timeout", "socket_keepalive", "health_check_interval"),
    *("retry_on_timeout", "max_connections", "client_name"),
)
"""Options of a redis-py URL that Celery's transport takes, too."""


def broker_settings(url: str) -> tuple[str, dict[str, Any]]:
    """`broker_url` and `broker_transport_options` of Celery for a URL that `open_ledger` takes.

    Nothing is contacted. Raises `LedgerError`, which never repeats a password.
    """
    address = parse_address(url)
    given = {name: address.options[name] for name in _OPTIONS if name in address.options}
    options = {**TRANSPORT_OPTIONS, **given}
    if address.service is not None:
        sockets = {"socket_timeout": 5, "socket_connect_timeout": 5}
        own = {"master_name": address.service, "sentinel_kwargs": sockets}
        # Each is tried by itself, so each has all of it.
        urls = (f"sentinel://{_login(address)}{place}{_tls(address)}" for place in _places(address))
        return ";".join(urls), options | own
    if address.path is not None:
        path = quote(address.path)
        return f"redis+socket://{_login(address)}{path}?virtual_host={address.db}", options
    scheme = "rediss" if address.tls else "redis"
    (place,) = _places(address)
    return f"{scheme}://{_login(address)}{place}{_tls(address)}", options


def _login(address: RedisAddress) -> str:
    user, password = (quote(text or "", safe="") for text in (address.username, address.password))
    return f"{user}:{password}@" if password else f"{user}@" if user else ""


def _places(address: RedisAddress) -> list[str]:
    return [f"{bracketed(host)}:{port}/{address.db}" for host, port in address.hosts]


def _tls(address: RedisAddress) -> str:
    if not address.tls:
        return ""
    options = {name: value for name, value in address.options.items() if name.startswith("ssl_")}
    options.setdefault("ssl_cert_reqs", "required")
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = str(options["ssl_check_hostname"]).lower()
    return f"?{urlencode(options)}"
