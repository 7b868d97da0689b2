"""The address of a Redis or Valkey server, read once: the ledger's client and Celery get its parts.

A password that nobody encoded cuts its address apart in other places than it should. So an address
that is refused is not repeated, and no name server is asked for what may be a piece of a password.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from jobs.errors import LedgerError

SENTINEL = "redis+sentinel"
SCHEMES = ("redis", "rediss", "unix", SENTINEL)

PORT = 6379
SENTINEL_PORT = 26379

HOW = (
    "it has the form redis://user:password@host:port/0, with each / @ : # ? % and space of the "
    "password written %2F %40 %3A %23 %3F %25 and %20"
)

_HOST = re.compile(r"[\w.-]+")
_SERVICE = re.compile(r"[A-Za-z0-9._-]+")  # as Sentinels allow names
_DATABASE = re.compile(r"[0-9]{1,9}")
_NAME = re.compile(r"[a-z_]{1,40}")

_Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


@with_config(ConfigDict(extra="forbid"))
class _Options(TypedDict, total=False):
    """Options that may follow in `?name=value&…`."""

    db: Annotated[int, Field(ge=0, lt=10**9)]
    username: str
    password: str
    socket_timeout: _Seconds
    socket_connect_timeout: _Seconds
    socket_keepalive: bool
    health_check_interval: Annotated[int, Field(ge=0, le=3600)]
    retry_on_timeout: bool
    max_connections: Annotated[int, Field(ge=1)]
    client_name: str
    ssl: bool
    ssl_ca_certs: str
    ssl_certfile: str
    ssl_keyfile: str
    ssl_cert_reqs: Literal["required", "optional", "none"]
    ssl_check_hostname: bool


_OPTIONS = TypeAdapter(_Options)


@dataclass(frozen=True)
class RedisAddress:
    """hosts: host and port of the server, or of each Sentinel if there is a service; none with the
    path of a socket. options: by redis-py's names, those of TLS only with `tls`.
    """

    hosts: tuple[tuple[str, int], ...] = ()
    path: str | None = None
    service: str | None = None
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Where the server is, for people; never with a password."""
        if self.service is not None:
            return f"service {self.service} of its Sentinels"
        if self.path is not None:
            return self.path
        ((host, port),) = self.hosts
        return f"{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """A host as URLs have it."""
    return f"[{host}]" if ":" in host else host


def parse_address(url: str) -> RedisAddress:
    """Nothing is contacted. Raises `LedgerError`, which repeats nothing of the address but names of
    options.

    url: `redis://[user:password@]host[:port][/db]`, the same with `rediss://` for TLS,
    `unix://[user:password@]/socket[?db=n]`, or with `redis+sentinel://`
    `[user:password@]host[:port],host[:port],…/service[/db]`, where user and password are those of
    the servers, not of the Sentinels. Options follow as `?ssl_ca_certs=…&…`.
    """
    url = url.strip()
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        _refuse("it holds a space or a line's end")
    try:
        parts = urlsplit(url)
    except ValueError:  # its text quotes the address
        _refuse("[ and ] are only for the address of a host, and are else written %5B and %5D")
    if parts.scheme not in SCHEMES:
        _refuse(f"it begins with none of {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
    # An @ ends user and password, which a / ? or # before it has cut off.
    if any("@" in rest for rest in (parts.path, parts.query, parts.fragment)):
        _refuse("there is a / ? or # in front of an @")
    if "#" in url:
        _refuse("there is a # in it")
    userinfo, _, netloc = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    given: dict[str, Any] = {"tls": parts.scheme == "rediss"}
    if parts.scheme == SENTINEL:
        given["service"], database = _service(parts.path)
        given["hosts"] = tuple(_host(host, SENTINEL_PORT) for host in netloc.split(","))
    elif parts.scheme == "unix":
        given["path"], database = _socket(netloc, parts.path), ""
    else:
        # Without a host, the one of this machine.
        given["hosts"] = (_host(f"127.0.0.1{netloc}" if netloc[:1] in ("", ":") else netloc, PORT),)
        database = parts.path.removeprefix("/")
    if database and not _DATABASE.fullmatch(database):
        _refuse("what follows the server's name is not the number of a database, such as /0")
    options = _options(parts.query)
    if parts.scheme == SENTINEL:
        given["tls"] = options.pop("ssl", False)
    _check_options(options, parts.scheme, tls=given["tls"])
    db = options.pop("db", 0)
    return RedisAddress(
        **given,
        db=int(database) if database else db,
        username=options.pop("username", None) or unquote(user) or None,
        password=options.pop("password", None) or unquote(password) or None,
        options=options,
    )


def _refuse(why: str, how: str = HOW) -> NoReturn:
    raise LedgerError(
        f"the address of the Redis server (SDBATCH_REDIS, --redis) is not valid: {why}; {how}"
    ) from None


def _options(query: str) -> dict[str, Any]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        _refuse("what follows the ? are no options, name=value&name=value")
    if len(dict(pairs)) < len(pairs):
        _refuse("an option is given twice")
    try:
        return dict(_OPTIONS.validate_python(dict(pairs)))
    except ValidationError as error:
        flaw = error.errors(include_input=False, include_url=False)[0]
        name = str(flaw["loc"][0])
        shown = name if _NAME.fullmatch(name) else "an option"
        if flaw["type"] == "extra_forbidden":
            known = ", ".join(_Options.__annotations__)
            _refuse(f"{shown} is no option of it", f"there are {known}")
        _refuse(f"the option {shown}: {flaw['msg']}")


def _check_options(options: dict[str, Any], scheme: str, *, tls: bool) -> None:
    if "ssl" in options:
        _refuse(f"the option ssl is for {SENTINEL}://", "for one server there is rediss://")
    for name in options:
        if name.startswith("ssl_") and not tls:
            _refuse(f"the option {name} is for rediss://", "give that, or leave it out")
    if scheme == "unix" and "socket_keepalive" in options:
        _refuse("the option socket_keepalive is for TCP", "leave it out")


def _service(path: str) -> tuple[str, str]:
    """Service and database of `/service[/db]`."""
    service, _, database = path.strip("/").partition("/")
    if not service:
        _refuse(f"it names no service of the Sentinels: {SENTINEL}://host:port/service")
    if not _SERVICE.fullmatch(service):
        _refuse("a service's name has letters, digits and . _ - only")
    return service, database


def _socket(netloc: str, path: str) -> str:
    if netloc or not path.strip("/"):
        _refuse("it names no socket: unix:///path/of/socket")
    return unquote(path)


def _host(text: str, port: int) -> tuple[str, int]:
    """Host and port of `host`, `host:port` or `[v6]:port`. port: if there is none."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname or "", port if parts.port is None else parts.port
        if text.startswith("["):
            ipaddress.IPv6Address(host)
    except ValueError:  # its text quotes the address
        _refuse("a port is no number, or a host in [ and ] no address")
    if not text.startswith("[") and not _HOST.fullmatch(host):
        _refuse("a host is missing, or has other characters than letters, digits and . _ -")
    if port == 0:
        _refuse("a port is 0")
    return host, port
