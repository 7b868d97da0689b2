"""Rights of those who ask the page's server: to read, to change jobs, or none.

A page of another site cannot read or change anything here: its requests have its own name as Host
(where its name was made to lead here), or as Origin, and they lack the token, which is in no
cookie.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

TOKEN_HEADER = "x-sdbatch-token"

MAX_HEADER_CHARS = 1000
"""Most that is looked at of a header."""


@dataclass(frozen=True)
class Access:
    """host: where the server listens, a name or an address. port: that is really listened on.
    token: lets those who have it change jobs, and read from any machine.
    """

    host: str
    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    @property
    def on_loopback(self) -> bool:
        """True if only this machine can ask."""
        return is_loopback(self.host)

    @property
    def address(self) -> str:
        """Address of the page with the token, which browsers send to nobody."""
        anywhere = self.host in ("", "0.0.0.0", "::")
        host = socket.gethostname() if anywhere else self.host
        bracketed = f"[{host}]" if ":" in host else host
        return f"http://{bracketed}:{self.port}/#token={quote(self.token, safe='')}"

    @property
    def cookie(self) -> str:
        """Name of the cookie that lets a browser read."""
        return f"sdbatch-{self.port}"

    @property
    def cookie_value(self) -> str:
        """Its value, which does not tell the token: images and events are asked for without it."""
        return hmac.new(self.token.encode(), b"read", hashlib.sha256).hexdigest()

    def knows_host(self, header: str) -> bool:
        """True if the Host header names this server; a port may lead here through a tunnel."""
        try:
            name = urlsplit(f"//{header[:MAX_HEADER_CHARS]}").hostname or ""
        except ValueError:
            return False
        if is_loopback(name):
            return True
        if self.on_loopback:
            return False
        return _is_ip(name) or name in (self.host.lower(), socket.gethostname().lower())

    def same_origin(self, headers: Mapping[str, str]) -> bool:
        """True if a page of this server asks, or no page at all."""
        origin = headers.get("origin")
        if origin is None:
            return True
        try:
            return urlsplit(origin[:MAX_HEADER_CHARS]).netloc == headers.get("host", "")
        except ValueError:
            return False

    def may_change(self, headers: Mapping[str, str]) -> bool:
        return _same(headers.get(TOKEN_HEADER, ""), self.token)

    def may_read(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> bool:
        if self.on_loopback or self.may_change(headers):
            return True
        return _same(cookies.get(self.cookie, ""), self.cookie_value)


def is_loopback(host: str) -> bool:
    """True for names and addresses of this machine that no other one reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _same(given: str, wanted: str) -> bool:
    """Compares in a time that does not tell how much of it is right."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())
