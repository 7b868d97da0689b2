"""Where kombu would let an odd message or a broken connection end the process.

What is in a queue but is no message is logged and dropped.

Whoever reaches the broker can put anything there. Kombu lets an error in what it reads up into
Celery's main loop, which ends by it; a message that was taken by then goes back to the queue, and
ends the next worker too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis
from redis.exceptions import ConnectionError, DataError

log = logging.getLogger(__name__)

MALFORMED = (
    *(TypeError, ValueError, LookupError, AttributeError, ArithmeticError),
    RecursionError,  # JSON nested too deep
    DataError,  # a delivery tag that is no text
)
"""What reading something odd raises. A connection that broke, or a process that has no memory or
threads left, is none of these: a new connection or a new process helps there.
"""


class _CarefulChannel:
    """Put before a channel of kombu's Redis transport."""

    client: Any
    connection: Any

    def _connparams(self, *args: Any, **options: Any) -> Any:
        """After a connection broke, a late acknowledgement may ask for where it led to."""
        if self.connection.client is None:
            raise ConnectionError("the connection to the broker is closed")
        return super()._connparams(*args, **options)  # type: ignore[misc]

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except MALFORMED as error:
            _refuse(error)
            # If it was not the message but a reply out of step, the next one is in step again.
            self.client.connection.disconnect()
            return True  # something was read

    def basic_consume(self, queue: str, *args: Any, **options: Any) -> Any:
        """As kombu calls it: with `no_ack` and `callback` by name."""
        callback: Callable[[Any], Any] = options.pop("callback")

        def taken(message: Any) -> Any:
            """The broker has noted by now who has it, so it has to be told of the end."""
            try:
                return callback(message)
            except MALFORMED as error:
                _refuse(error)
                if not options["no_ack"] and not message.acknowledged:
                    message.ack()

        return super().basic_consume(queue, *args, callback=taken, **options)  # type: ignore[misc]


class _CarefulTransport:
    """Put before kombu's Redis transport."""

    def _deliver(self, message: Any, queue: str) -> None:
        try:
            super()._deliver(message, queue)  # type: ignore[misc]
        except MALFORMED as error:  # its envelope
            _refuse(error)


def _refuse(error: BaseException) -> None:
    log.error("dropped what is no message: %s", type(error).__name__, exc_info=error)


class Channel(_CarefulChannel, redis.Channel):
    pass


class SentinelChannel(_CarefulChannel, redis.SentinelChannel):
    pass


class Transport(_CarefulTransport, redis.Transport):
    Channel = Channel


class SentinelTransport(_CarefulTransport, redis.SentinelTransport):
    Channel = SentinelChannel


def be_careful() -> None:
    """From now on, this process's connections to a broker are such ones. By kombu's table of
    schemes: of several Sentinels' URLs, each is looked up there when its turn comes.
    """
    TRANSPORT_ALIASES.update(
        redis=f"{__name__}:Transport",
        rediss=f"{__name__}:Transport",
        sentinel=f"{__name__}:SentinelTransport",
    )
