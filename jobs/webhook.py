"""Webhooks: what is told at the end of a job, how it is signed, and where it may go.

The body is JSON:

    {"version": 1, "event": "job.done" or "job.cancelled", "id": …, "job": …, "name": …, "store": …,
     "images": n, "done": n, "failed": n, "ended": "2026-01-31T12:00:00.000000Z"}

`id` is of this end of the job and the same however often it is sent; it is in the header
X-Sdbatch-Delivery too. With a secret there is a header X-Sdbatch-Signature, `t=<Unix>,v1=<hex>`:
the time it was sent, and the HMAC-SHA256 of `<Unix>.<body>`. A receiver written in Python checks it
with `verify`, with the body's bytes as they came.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import re
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from jobs.errors import InputError
from jobs.ledger.types import JobStatus

MAX_URL_CHARS = 2048
TOLERANCE_S = 300.0
"""How far a signature's time may be from the receiver's clock."""

_PORTS = {"http": 80, "https": 443}
_EXPECTED = "expected http://host/path or https://host/path"
_LABEL = "[A-Za-z0-9_-]{1,63}"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?")
_BRACKETED = re.compile(r"\[(?P<v6>[0-9A-Fa-f:.]+)\](:[0-9]*)?")
_SIGNATURE = re.compile(r"t=(?P<t>[0-9]{1,12}),v1=(?P<v1>[0-9a-f]{64})", re.ASCII)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_INSIDE = (
    ipaddress.IPv4Network("168.63.129.16/32"),  # what Azure tells its machines, secrets too
    ipaddress.IPv4Network("192.0.0.0/24"),  # of protocols; Oracle's cloud tells secrets at .192
    ipaddress.IPv6Network("64:ff9b:1::/48"),  # wraps IPv4 addresses of a private network
)
"""Public by their number, but not of a host in the internet."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class AddressRefusedError(InputError):
    """The webhook's host has an address that is not to be contacted."""


@dataclass(frozen=True)
class WebhookUrl:
    """Where to send. host: without brackets. target: path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, url: str) -> WebhookUrl:
        """Raises `InputError`, whose message repeats nothing that may be a secret."""
        wrong = check_url(url)
        if wrong is not None:
            raise InputError(f"webhook: {wrong}")
        parts = urlsplit(url)
        port = _PORTS[parts.scheme] if parts.port is None else parts.port
        query = f"?{parts.query}" if parts.query else ""
        return cls(parts.scheme, parts.hostname or "", port, f"{parts.path or '/'}{query}")

    @property
    def authority(self) -> str:
        """Value of the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        """For logs: path and query may hold a secret."""
        return f"{self.scheme}://{self.authority}/…"


def check_url(url: str) -> str | None:
    """Flaw of a webhook's URL; None if there is none. Nothing is resolved or contacted."""
    if len(url) > MAX_URL_CHARS:
        return f"a URL of {len(url):,} characters, expected at most {MAX_URL_CHARS:,}"
    if not re.fullmatch(r"[\x21-\x7e]+", url):
        return "the URL holds a space or a character beyond ASCII; write it %-encoded"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return f"not a valid URL; {_EXPECTED}"
    if "@" in parts.netloc:
        return (
            "the URL holds a user name or password, which would be kept with the job; leave them "
            "out and let the receiver check the signature (SDBATCH_WEBHOOK_SECRET)"
        )
    if parts.scheme not in _PORTS:
        return f"the URL is neither http:// nor https://; {_EXPECTED}"
    if not _is_host(parts.netloc, parts.hostname) or port == 0:
        return f"the URL has no valid host and port; {_EXPECTED}"
    if "#" in url:
        return "the URL has a fragment (#…), which is never sent; leave it out"
    return None


def _is_host(netloc: str, hostname: str | None) -> bool:
    if not netloc.startswith("["):
        return hostname is not None and len(hostname) <= 253 and bool(_HOST.fullmatch(hostname))
    match = _BRACKETED.fullmatch(netloc)
    try:
        return match is not None and bool(ipaddress.IPv6Address(match["v6"]))
    except ValueError:
        return False


def resolve(url: WebhookUrl, *, allow_private: bool = False) -> list[str]:
    """The addresses of the URL's host: connect to one of these, not to the name, which may lead
    elsewhere the next time it is asked for.

    Raises `AddressRefusedError` if any of them is not public, unless `allow_private`, and `OSError`
    if the name is not known.
    """
    try:
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a name that the resolver's encoding refuses
        raise OSError(f"{url.host} is no host name") from error
    addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
    for address in addresses:
        if not allow_private and not is_public(ipaddress.ip_address(address)):
            raise AddressRefusedError(
                f"{url.host} has the address {address}, which is not public; "
                "SDBATCH_WEBHOOK_PRIVATE=1 on the workers allows such"
            )
    return addresses


def is_public(address: Address) -> bool:
    """True if it is an address of one host in the internet, also where it wraps an IPv4 one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.sixtofour is not None or address.teredo is not None or address.is_site_local:
            return False
    if any(address in network for network in _INSIDE):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def delivery_id(status: JobStatus) -> str:
    """Id of this end of the job: 32 hex digits."""
    end = f"{status.job_id}\n{status.ended_s or 0.0:.6f}"
    return hashlib.sha256(end.encode()).hexdigest()[:32]


def make_body(status: JobStatus) -> bytes:
    """Body of the request. status: of a job that has ended."""
    ended = datetime.fromtimestamp(status.ended_s or 0.0, UTC).isoformat(timespec="microseconds")
    document = {
        "version": 1,
        "event": f"job.{status.state}",
        "id": delivery_id(status),
        "job": status.job_id,
        "name": status.name,
        "store": _without_credentials(status.store),
        "images": status.total,
        "done": status.done,
        "failed": status.failed,
        "ended": ended.replace("+00:00", "Z"),
    }
    return json.dumps(document).encode()


def _without_credentials(store: str) -> str:
    scheme, separator, rest = store.partition("://")
    if not separator:
        return store
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


def sign(secret: str, body: bytes, now_s: float | None = None) -> str:
    """The header X-Sdbatch-Signature. now_s: Unix time."""
    at = int(time.time() if now_s is None else now_s)
    return f"t={at},v1={_digest(secret, at, body)}"


def verify(
    secret: str,
    header: str | None,
    body: bytes,
    tolerance_s: float = TOLERANCE_S,
    *,
    now_s: float | None = None,
) -> bool:
    """For receivers: whether the body was signed with this secret, at most `tolerance_s` ago.

    header: X-Sdbatch-Signature, None if there was none. now_s: Unix time. Raises `ValueError` if
    the secret is empty.
    """
    if not secret:
        raise ValueError("the secret is empty")
    match = _SIGNATURE.fullmatch(header or "")
    if match is None:
        return False
    at = int(match["t"])
    fresh = abs((time.time() if now_s is None else now_s) - at) <= tolerance_s
    return hmac.compare_digest(match["v1"], _digest(secret, at, body)) and fresh


def _digest(secret: str, at: int, body: bytes) -> str:
    return hmac.new(secret.encode(), b"%d." % at + body, hashlib.sha256).hexdigest()
