"""The queue: messages that name work. Whether a message's work may run, the ledger decides.

So a message may be lost, late or delivered twice. One queue a model, as workers load one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, NotRequired, Protocol

from celery import Celery
from kombu.exceptions import ChannelError, OperationalError
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from redis.exceptions import RedisError
from typing_extensions import TypedDict

from jobs.errors import DamagedLedgerError, InputError, LedgerError
from jobs.ledger.redis.address import parse_address
from jobs.ledger.redis.errors import cause, is_flaw
from jobs.ledger.types import Shard
from jobs.limits import MAX_IMAGES
from jobs.queue.broker import broker_settings
from jobs.storage.base import is_segment

TASK = "worker.render_shard"

CELERY_SETTINGS: Mapping[str, Any] = {
    "broker_connection_retry_on_startup": True,
    # By Celery's default, a worker whose broker is unreachable for most of an hour ends.
    "broker_connection_max_retries": None,
    "task_acks_late": True,
    "worker_prefetch_multiplier": 1,
    "task_ignore_result": True,
    "result_backend": None,
    "worker_pool": "threads",
    # Soft shutdown breaks threads pools; the worker drains by itself.
    "worker_soft_shutdown_timeout": 0,
    # Nothing asks for it, and with a Redis that is full it fails once a second, with a traceback.
    "worker_enable_remote_control": False,
    "task_serializer": "json",
    "accept_content": ["json"],  # never pickle: a broker is not to run code
}
"""For everything that talks to a broker, wherever it is; `celery_settings` has the rest."""

SEND_RETRIES = {"max_retries": 4, "interval_start": 0.2, "interval_step": 0.5, "interval_max": 2.0}


def celery_settings(url: str) -> dict[str, Any]:
    """Celery's configuration, for workers and submitting commands alike.

    url: as `open_ledger` takes it. Raises `LedgerError`.
    """
    broker_url, options = broker_settings(url)
    return {
        **CELERY_SETTINGS,
        "broker_url": broker_url,
        "broker_transport_options": options,
    }


def queue_name(model: str) -> str:
    """Queue of the workers that have this model loaded."""
    return f"sdbatch.{model}"


_Index = Annotated[int, Field(ge=0, le=MAX_IMAGES)]


MESSAGE_VERSION = 1
"""The version that this reads; a message without one is of version 1. Fields that it does not know
are ignored, so a message whose known fields mean something else has a higher version.
"""


@with_config(ConfigDict(extra="ignore", strict=True))
class _Message(TypedDict):
    job: Annotated[str, Field(min_length=1)]
    shard: _Index
    start: _Index
    stop: _Index
    version: NotRequired[Annotated[int, Field(ge=1)]]


_MESSAGE = TypeAdapter(_Message)


def to_message(shard: Shard) -> dict[str, Any]:
    """Message for a shard: no prompts, only which images."""
    return {
        "job": shard.job_id,
        "shard": shard.number,
        "start": shard.start,
        "stop": shard.stop,
    }


def from_message(message: object) -> Shard:
    """The inverse of `to_message`. Raises `InputError` for anything that is no such message."""
    version = message.get("version") if isinstance(message, dict) else None
    if isinstance(version, int) and version > MESSAGE_VERSION:
        raise InputError(
            f"a message of version {version}; this worker reads version {MESSAGE_VERSION}: give it "
            "a newer sdbatch"
        )
    try:
        values = _MESSAGE.validate_python(message)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"not a message of sdbatch: {place}: {first['msg']}") from None
    if "/" in values["job"] or not is_segment(values["job"]):
        raise InputError(f"not a message of sdbatch: {values['job']!r} is no job")
    if values["start"] >= values["stop"]:
        raise InputError(f"not a message of sdbatch: images {values['start']} to {values['stop']}")
    return Shard(values["job"], values["shard"], values["start"], values["stop"])


class ShardQueue(Protocol):
    """Both methods raise `LedgerError` if the broker cannot be reached, or refuses, and
    `DamagedLedgerError` if what is under the queue's name is none.
    """

    def send(self, model: str, shards: Iterable[Shard]) -> None:
        """One message a shard, to the queue of the model."""
        ...

    def length(self, model: str) -> int:
        """Messages that no worker has taken yet."""
        ...


class CeleryQueue:
    """The broker in a Redis server, through Celery. url: as `open_ledger` takes it. Raises
    `LedgerError` if it is none.
    """

    def __init__(self, url: str) -> None:
        self._app = Celery("sdbatch", set_as_current=False)
        self._app.conf.update(celery_settings(url))
        self._place = parse_address(url).place

    def __repr__(self) -> str:
        return f"CeleryQueue({self._place})"

    def send(self, model: str, shards: Iterable[Shard]) -> None:
        with self._explained(), self._app.producer_pool.acquire(block=True) as producer:
            for shard in shards:
                self._app.send_task(
                    TASK,
                    kwargs={"message": to_message(shard)},
                    queue=queue_name(model),
                    producer=producer,
                    retry=True,
                    retry_policy=SEND_RETRIES,
                )

    def length(self, model: str) -> int:
        with self._explained(), self._app.connection_for_write() as connection:
            channel = connection.default_channel
            try:
                declared = channel.queue_declare(queue_name(model), passive=True)
            except ChannelError:  # nothing was ever sent there
                return 0
            return int(declared.message_count)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, RedisError, OSError) as error:
            origin = _origin(error)
            why = cause(origin) if isinstance(origin, RedisError) else str(error)
            kind = LedgerError
            if isinstance(origin, RedisError) and is_flaw(origin):
                kind = DamagedLedgerError
            raise kind(f"broker at {self._place}: {why}") from error


def _origin(error: BaseException) -> BaseException:
    """The innermost error of redis-py that this one was raised from; itself if there is none."""
    origin, inner = error, error.__cause__
    while inner is not None:
        if isinstance(inner, RedisError):
            origin = inner
        inner = inner.__cause__
    return origin
