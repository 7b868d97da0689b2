"""Kinds of errors of redis-py, and words for them. Nothing here repeats a password."""

from __future__ import annotations

import re

from redis import exceptions as errors
from redis.sentinel import MasterNotFoundError

_PASSWORD = "wrong user name or password"
_NO_RIGHT = (
    "this user may not do that; take one that may: infra/OPERATIONS.md has users for submitting, "
    "for workers and for looking"
)
_CLUSTER = "it is a Redis Cluster, which is not supported; give a single server"

# What servers write. Before Redis 7 an error inside a script had its code somewhere in the text;
# newer versions of redis-py make a kind of error of more codes, and take them out of the text.
_SAID = {
    "Authentication required|NOAUTH": "it wants a password; give one in its URL, "
    "redis://:PASSWORD@host:port",
    "without any password configured": "it knows no password; leave the one in its URL out",
    "OOM": "it is full; raise its maxmemory or remove old jobs (sdbatch forget), then go on",
    "READONLY": "it is a read-only replica; give the address of its primary",
    # The latter two are said inside a script, the last of them by Redis 6.
    "NOPERM|ACL failure|user executing the script can't": _NO_RIGHT,
    "MISCONF": "it cannot save to its disk, so it refuses changes; free some space there",
    "MASTERDOWN": "it is a replica that has lost its primary; give the primary's address",
    "NOREPLICAS": "it has too few replicas to accept changes; bring them back",
    "BUSY": "it is busy with a script; wait for its end, or end it: SCRIPT KILL",
    "MOVED|CLUSTERDOWN|non local key": _CLUSTER,
    "DB index is out of range": "it has no database of that number",
    "max number of clients": "it has too many connections; raise its maxclients",
}

# What redis-py makes of them; special errors before the general ones that they belong to.
_KINDS: dict[type[errors.RedisError], str] = {
    errors.AuthenticationError: _PASSWORD,
    errors.OutOfMemoryError: _SAID["OOM"],
    errors.ReadOnlyError: _SAID["READONLY"],
    errors.NoPermissionError: _NO_RIGHT,
    errors.BusyLoadingError: "it is still loading its data; try again in a moment",
    errors.MasterDownError: _SAID["MASTERDOWN"],
    errors.ClusterError: _CLUSTER,
    errors.MovedError: _CLUSTER,
    MasterNotFoundError: "no Sentinel that answers knows a primary of that name",
    errors.InvalidResponse: "what answers there is no Redis or Valkey server",
}


_NOBODY = re.compile(
    r"refused|not known|No address|name resolution|No such file|unreachable|No route"
)
"""Words of a connection's error where there is no server."""

_START = (
    "start a Redis or Valkey server there (sdbatch local does, with workers), or give another "
    "address in SDBATCH_REDIS or --redis"
)

_FLAWS = re.compile(
    r"WRONGTYPE|not an integer|not a valid float|overflow|attempt to|bad argument|too short"
)
"""Flaws of stored values, as `lua/common.lua` lists them."""


def is_flaw(error: errors.RedisError) -> bool:
    """True if the server says that something it holds is not of the kind that it must be."""
    return isinstance(error, errors.ResponseError) and bool(_FLAWS.search(str(error)))


def cause(error: errors.RedisError) -> str:
    """One line: what is wrong, and what to do about it."""
    text = str(error)
    for said, meaning in _SAID.items():
        if re.search(rf"\b({said})\b", text):
            return meaning
    for kind, meaning in _KINDS.items():
        if isinstance(error, kind):
            return meaning
    if isinstance(error, errors.TimeoutError):
        return f"no answer in time ({text}); is it overloaded or out of reach?"
    if isinstance(error, errors.ConnectionError):
        hint = f"; {_START}" if _NOBODY.search(text) else ""
        return f"cannot connect: {text.rstrip('.')}{hint}"
    return text
