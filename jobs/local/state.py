"""State that a local cluster keeps in its folder between starts: secrets and ports."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jobs.errors import InputError
from jobs.local.address import write_private

MISSING = "`sdbatch local` needs {}, which is not installed: pip install 'sdbatch[local]'"

SEAWEED_PORTS = tuple(
    f"{server}.port{kind}"
    for server in ("master", "volume", "filer", "s3")
    for kind in ("", ".grpc")
)
"""Named as SeaweedFS names its options."""

_PORTS = ("redis", *SEAWEED_PORTS)


@dataclass(frozen=True)
class State:
    """ports: by the names in `_PORTS`."""

    redis_password: str = field(repr=False)
    key_id: str
    secret: str = field(repr=False)
    ports: Mapping[str, int]


def load_state(folder: Path) -> State:
    """The secrets of the folder, made at the first start, and ports that are free now.

    Ports stay the same if they can, so that addresses somebody noted down go on working. Raises
    `InputError` if the file is damaged, `OSError` if it cannot be read or written.
    """
    path = folder / "state.json"
    kept: Mapping[str, int] = {}
    try:
        values = json.loads(path.read_bytes())
        state = State(**values)
        kept = dict(state.ports)
    except FileNotFoundError:
        state = State(secrets.token_hex(16), secrets.token_hex(10), secrets.token_hex(20), {})
    except (ValueError, TypeError):
        raise InputError(
            f"{path} is damaged; delete it, and the cluster gets new passwords"
        ) from None
    state = State(state.redis_password, state.key_id, state.secret, _free_ports(kept))
    write_private(path, json.dumps(asdict(state), indent=2))
    return state


def _free_ports(wanted: Mapping[str, int]) -> dict[str, int]:
    """A free port for each name, all different; the wanted one if it is free."""
    with ExitStack() as held:
        ports = {}
        for name in _PORTS:
            holder = held.enter_context(socket.socket())
            # As servers do: connections of an earlier start may linger on the port.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound = False
            with contextlib.suppress(OSError):
                holder.bind(("127.0.0.1", wanted.get(name, 0)))
                bound = True
            if not bound:
                holder.bind(("127.0.0.1", 0))
            ports[name] = holder.getsockname()[1]
        return ports
