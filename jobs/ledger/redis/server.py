"""A Redis or Valkey server: asked again if a connection breaks, its errors explained."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from redis import Redis
from redis import exceptions as errors

from jobs.errors import DamagedLedgerError, LedgerError
from jobs.ledger.redis.errors import cause, is_flaw
from jobs.ledger.redis.scripts import load

RETRY_AFTER_S = (0.0, 0.2, 0.8)
"""Pauses before asking again. The first is none: most often an idle connection was closed."""


class Server:
    """client: answers with bytes (`decode_responses` off). Safe to use from any thread.

    place: where the server is, for people; never with a password. user: that it is asked as.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self.place = _place(client)
        self.user: str = client.connection_pool.connection_kwargs.get("username") or "default"

    def run(self, script: str, *args: str | bytes | int) -> Any:
        """Run `lua/<script>.lua`; its answer. Raises `LedgerError`."""
        code = load(script)

        def call(client: Any) -> Any:
            try:
                return client.evalsha(code.sha1, 0, *args)
            except errors.NoScriptError:  # the server was restarted, or is another one now
                return client.eval(code.text, 0, *args)

        return self.ask(call)

    def ask(self, question: Callable[[Any], Any]) -> Any:
        """Call `question` with the client, again if the connection breaks; its answer.

        The answer may be what was lost, so a question must be safe to ask twice. Raises
        `LedgerError`.
        """
        pauses_s = iter(RETRY_AFTER_S)
        while True:
            try:
                return question(self._client)
            except errors.RedisError as error:
                pause_s = next(pauses_s, None) if _may_pass(error) else None
                if pause_s is None:
                    kind = DamagedLedgerError if is_flaw(error) else LedgerError
                    raise kind(f"ledger at {self.place}: {cause(error)}") from error
            time.sleep(pause_s * random.uniform(0.5, 1.0))


def _may_pass(error: errors.RedisError) -> bool:
    """True if asking again can help."""
    if isinstance(error, (errors.AuthenticationError, errors.AuthorizationError)):
        return False  # these are connection errors to redis-py
    return isinstance(error, (errors.ConnectionError, errors.TimeoutError))


def _place(client: Redis) -> str:
    pool = client.connection_pool
    if hasattr(pool, "service_name"):
        return f"service {pool.service_name} of its Sentinels"
    options = pool.connection_kwargs
    if "path" in options:
        return str(options["path"])
    host, port = str(options.get("host", "localhost")), options.get("port", 6379)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
