"""The page's server in a thread of its own: started, watched and ended by a command."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn

from jobs.dashboard.access import Access
from jobs.dashboard.app import Dashboard
from jobs.errors import InputError, SdbatchError
from jobs.formatting import quote, reason
from jobs.ledger.base import Ledger
from jobs.storage import Store

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
MOST_CONNECTIONS = 256


@dataclass(frozen=True)
class Place:
    """Where a server is to listen. port: 0 for any that is free. token: None for a new one."""

    host: str
    port: int
    token: str | None = None


class _Server(uvicorn.Server):
    """Sends listeners away before it waits for connections to end, which those would not do."""

    def __init__(self, config: uvicorn.Config, dashboard: Dashboard) -> None:
        super().__init__(config)
        self._dashboard = dashboard

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._dashboard.hub.close()
        await super().shutdown(sockets)


@dataclass(frozen=True)
class Running:
    """A server that answers. alive: asks if it still does. on_loopback: only this machine reaches
    it.
    """

    address: str
    on_loopback: bool
    alive: Callable[[], bool]


@contextlib.contextmanager
def serving(
    place: Place,
    ledger: Ledger,
    open_store: Callable[[str], Store],
    price: float | None = None,
) -> Iterator[Running]:
    """Serves the page meanwhile. The rest as `Dashboard` has it.

    Raises `InputError` if the place cannot be listened on.
    """
    with listening(place) as listener:
        port = listener.getsockname()[1]
        given = {} if place.token is None else {"token": place.token}
        dashboard = Dashboard(ledger, Access(place.host, port, **given), open_store, price)
        config = uvicorn.Config(
            dashboard.app,
            http="h11",
            loop="asyncio",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=int(STOP_TIMEOUT_S) - 2,
        )
        server = _Server(config, dashboard)
        thread = threading.Thread(
            target=server.run, args=([listener],), name="sdbatch-dashboard", daemon=True
        )
        thread.start()
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not server.started:
                if not thread.is_alive() or time.monotonic() > deadline:
                    raise SdbatchError("the page's server did not start")
                time.sleep(0.01)
            access = dashboard.access
            yield Running(access.address, access.on_loopback, thread.is_alive)
        finally:
            server.should_exit = True
            thread.join(STOP_TIMEOUT_S)


def listening(place: Place) -> socket.socket:
    """A socket that listens there. Raises `InputError` that says which port, and what to do."""
    try:
        found = socket.getaddrinfo(
            place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host: {quote(place.host)} is no address here: {error}") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        raise InputError(_cannot_listen(place, error)) from None
    return listener


def _cannot_listen(place: Place, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {place.port} of {place.host} is in use, perhaps by another dashboard; choose "
            "another with --port, or --port 0 for any that is free"
        )
    if error.errno == errno.EACCES:
        return f"port {place.port} of {place.host} is not allowed; choose one over 1023 with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host: {quote(place.host)} is no address of this machine"
    return f"{place.host}:{place.port} cannot be listened on: {reason(error)}"
