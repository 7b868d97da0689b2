"""Guard for kombu: no odd message, broken connection or refusing server ends the process.

Anybody who reaches the broker can put anything into a queue. Kombu lets an error in what it reads
up into Celery's main loop, and the loop ends by it. A message that was taken by then goes back to
the queue, and ends the next worker too. So an entry that is no message is logged and dropped here.

A server that is full, has become a replica or runs a long script answers with errors for a while.
Celery ends by these errors too, but after an error of the connection it connects again. So they
become errors of the connection here.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis, virtual
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import (
    ConnectionError,
    DataError,
    InvalidResponse,
    NoScriptError,
    ResponseError,
    TimeoutError,
)

from jobs.ledger.redis.errors import cause

log = logging.getLogger(__name__)

PAUSE_S = 2.0
"""Pause between a server's refusal and a new connection, for it would refuse that at once. Celery
connects again without a pause.
"""

MALFORMED = (
    *(TypeError, ValueError, LookupError, AttributeError, ArithmeticError),
    RecursionError,  # JSON nested too deep
    DataError,  # a delivery tag that is no text
)
"""Errors that reading something odd raises. A broken connection, or a process without memory or
threads, is none of them: a new connection or a new process helps there.
"""


class RefusedError(ConnectionError):
    """The server answered with an error, which may pass."""

    last_s = -PAUSE_S
    """When this was so last, on the monotonic clock."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        RefusedError.last_s = time.monotonic()


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except NoScriptError:  # redis-py then sends the script itself
        raise
    except (ResponseError, InvalidResponse) as error:
        raise RefusedError(cause(error)) from error


class _Pipeline(Pipeline):
    def execute(self, *args: Any, **options: Any) -> Any:
        with _refusals():
            return super().execute(*args, **options)

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        with _refusals():
            return super().immediate_execute_command(*args, **options)


class _Client(Redis):
    def execute_command(self, *args: Any, **options: Any) -> Any:
        with _refusals():
            return super().execute_command(*args, **options)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> _Pipeline:
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _CarefulQoS(redis.QoS):
    def append(self, message: Any, delivery_tag: str) -> None:
        """Has the broker note who has a message that was just taken out of its queue.

        One that does not may as well have lost the message: it is rendered without the note. If
        this process dies meanwhile, the ledger misses the message after a while.
        """
        try:
            super().append(message, delivery_tag)
        except RefusedError as error:
            log.warning("the broker does not note that a message was taken: %s", error)
            virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        with self._not_noted(delivery_tag):
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        with self._not_noted(delivery_tag):
            super().reject(delivery_tag, requeue)

    def restore_visible(self, *args: Any, **options: Any) -> None:
        """Looks for messages that somebody took long ago, which there is time for later."""
        with contextlib.suppress(RefusedError):
            super().restore_visible(*args, **options)

    @contextlib.contextmanager
    def _not_noted(self, delivery_tag: str) -> Iterator[None]:
        """Makes room for the next message whatever the broker says of the end of this one.

        Kombu would count it as unfinished for ever. The broker sends it again one day, and the
        ledger refuses it or has sent another one since.
        """
        try:
            yield
        except (ConnectionError, TimeoutError, OSError) as error:
            log.warning("the broker does not note the end of a message: %s", error)
            virtual.QoS.ack(self, delivery_tag)


class _CarefulChannel:
    """Put before a channel of kombu's Redis transport."""

    QoS = _CarefulQoS
    client: Any
    connection: Any
    _closing: bool

    def _get_client(self) -> type[Redis]:
        super()._get_client()  # type: ignore[misc] # it checks redis-py's version
        return _Client

    def queue_declare(self, *args: Any, **options: Any) -> Any:
        try:
            return super().queue_declare(*args, **options)  # type: ignore[misc]
        except RefusedError as error:
            _say_refused(error)
            raise

    def _queue_bind(self, *args: Any) -> None:
        """Who sends messages binds their queue, too, so reading works without."""
        try:
            super()._queue_bind(*args)  # type: ignore[misc]
        except RefusedError as error:
            log.warning("the broker does not bind the queue: %s", error)

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
        except (ResponseError, InvalidResponse) as error:
            self.client.connection.disconnect()
            if not self._closing:
                _say_refused(cause(error))
            raise RefusedError(cause(error)) from error

    def basic_consume(self, queue: str, *args: Any, **options: Any) -> Any:
        """Take over kombu's call, which gives `no_ack` and `callback` by name."""
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

    def establish_connection(self) -> Any:
        time.sleep(max(0.0, RefusedError.last_s + PAUSE_S - time.monotonic()))
        return super().establish_connection()  # type: ignore[misc]

    def _deliver(self, message: Any, queue: str) -> None:
        try:
            super()._deliver(message, queue)  # type: ignore[misc]
        except MALFORMED as error:  # its envelope
            _refuse(error)


def _refuse(error: BaseException) -> None:
    log.error("dropped what is no message: %s", type(error).__name__, exc_info=error)


def _say_refused(why: object) -> None:
    log.warning("the broker gives no messages: %s", why)


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
