"""The broker's address as Celery wants it, from the one that the ledger takes.

Celery calls some things otherwise, and some it takes to be less safe: without `ssl_cert_reqs` in a
rediss:// URL it would not look at the server's certificate at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from redis.connection import parse_url

from jobs.errors import LedgerError
from jobs.ledger.connect import SENTINEL, SENTINEL_PORT

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
"""What Celery's transport takes of the options that redis-py takes in a URL."""

_CERT_REQS = ("required", "optional", "none")


def broker_settings(url: str) -> tuple[str, dict[str, Any]]:
    """`broker_url` and `broker_transport_options` of Celery for a URL that `open_ledger` takes.

    Nothing is contacted. Raises `LedgerError`, which never repeats a password.
    """
    try:
        scheme = urlsplit(url).scheme
        if scheme == SENTINEL:
            return _sentinel(url)
        if scheme == "unix":
            return _unix(url)
        if scheme in ("redis", "rediss"):
            return _tcp(url)
    except (ValueError, TypeError):
        # The original error may quote a password that was taken for a port or a host.
        raise LedgerError("the broker's address is no valid URL") from None
    raise LedgerError("the broker's address is no URL of a Redis server; give redis://host:port")


def _tcp(url: str) -> tuple[str, dict[str, Any]]:
    given: dict[str, Any] = dict(parse_url(url))
    scheme = urlsplit(url).scheme
    tls = _tls(given) if scheme == "rediss" else ""
    host = _bracketed(given.get("host", "127.0.0.1"))
    place = f"{host}:{given.get('port', 6379)}/{given.get('db', 0)}"
    return f"{scheme}://{_userinfo(given)}{place}{tls}", _options(given)


def _unix(url: str) -> tuple[str, dict[str, Any]]:
    given: dict[str, Any] = dict(parse_url(url))
    if not given.get("path"):
        raise LedgerError("the broker's address names no socket: unix:///path/of/socket")
    path = quote(given["path"])
    place = f"{_userinfo(given)}{path}?virtual_host={given.get('db', 0)}"
    return f"redis+socket://{place}", _options(given)


def _sentinel(url: str) -> tuple[str, dict[str, Any]]:
    parts = urlsplit(url)
    userinfo, at, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    if not service:
        raise LedgerError(
            f"the broker's address names no service of the Sentinels: {SENTINEL}://host:port/service"
        )
    given: dict[str, Any] = dict(
        parse_url(f"redis://{userinfo}{at}sentinel/{int(db or 0)}?{parts.query}")
    )
    tls = _tls(given) if given.get("ssl") else ""
    # Each is tried by itself, so each has all of it.
    urls = []
    for host in hosts.split(","):
        address = urlsplit(f"//{host}")
        if not address.hostname:
            raise ValueError("a host is empty")
        place = f"{_bracketed(address.hostname)}:{address.port or SENTINEL_PORT}"
        urls.append(f"sentinel://{_userinfo(given)}{place}/{given['db']}{tls}")
    sockets = {"socket_timeout": 5, "socket_connect_timeout": 5}
    own = {"master_name": service, "sentinel_kwargs": sockets}
    return ";".join(urls), _options(given) | own


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    return {**TRANSPORT_OPTIONS, **{name: given[name] for name in _OPTIONS if name in given}}


def _userinfo(given: Mapping[str, Any]) -> str:
    user, password = (quote(given.get(name, ""), safe="") for name in ("username", "password"))
    return f"{user}:{password}@" if password else f"{user}@" if user else ""


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _tls(given: Mapping[str, Any]) -> str:
    options = {name: value for name, value in given.items() if name.startswith("ssl_")}
    options.setdefault("ssl_cert_reqs", "required")
    if options["ssl_cert_reqs"] not in _CERT_REQS:
        expected = ", ".join(_CERT_REQS)
        raise LedgerError(f"the broker's address: ssl_cert_reqs is not one of {expected}")
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = str(options["ssl_check_hostname"]).lower()
    return f"?{urlencode(options)}"
