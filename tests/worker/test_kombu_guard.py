"""A worker's connection to the broker: odd messages, and a server that refuses."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time

import kombu
import kombu.exceptions
import kombu.transport.redis
import pytest
from kombu.asynchronous import Hub

from tests.servers import wait_for
from tests.worker.serve.garbage import ENVELOPES, QUEUE, with_body, with_properties
from tests.worker.serve.refusals import REFUSALS
from worker import kombu_guard
from worker.kombu_guard import SentinelTransport, Transport, be_careful


@pytest.fixture
def channel(valkey):
    """A careful connection that consumes, and its server."""
    with valkey.client() as client:
        client.flushall()
        connection = kombu.Connection(valkey.url)
        connection.transport_cls = Transport
        with connection:
            yield connection, client


def consume(connection, callback, until) -> None:
    """Reads until the condition holds."""
    queue = kombu.Queue(QUEUE, kombu.Exchange(""), routing_key=QUEUE)
    with kombu.Consumer(connection, [queue], on_message=callback, accept=["json"]):
        read(connection, until)


def read(connection, until) -> None:
    """What is consumed, until the condition holds."""

    def once() -> bool:
        with contextlib.suppress(TimeoutError):
            connection.drain_events(timeout=0.1)
        return until()

    wait_for(once, "the messages")


@pytest.mark.parametrize("raw", ENVELOPES.values(), ids=ENVELOPES)
def test_what_is_no_message_is_dropped_and_the_next_one_comes(channel, caplog, raw):
    connection, client = channel
    client.lpush(QUEUE, raw)
    client.lpush(QUEUE, with_properties(delivery_tag="tag-good"))
    tags = []

    def take(message):
        tags.append(message.delivery_tag)
        message.ack()

    consume(connection, take, lambda: "tag-good" in tags)
    assert client.llen(QUEUE) == 0
    assert client.hlen("unacked") == 0


def test_acknowledging_over_a_connection_that_is_gone_is_an_error_of_the_connection(
    channel, caplog
):
    """Which Celery expects while it connects anew, and not of the program, which ends it."""
    connection, client = channel
    client.lpush(QUEUE, with_properties(delivery_tag="tag-good"))
    taken = []
    consume(connection, taken.append, lambda: taken)
    (message,) = taken
    message.channel.connection.client = None  # as closing leaves it
    message.channel.__dict__.pop("pool", None)
    message.channel._pool = None
    message.ack_log_error(logging.getLogger("test"), connection.connection_errors)
    assert "the connection to the broker is closed" in caplog.text
    message.channel.connection.client = connection


def test_a_message_whose_handling_fails_by_what_it_is_is_not_delivered_again(channel, caplog):
    connection, client = channel
    client.lpush(QUEUE, with_body(b"7"))
    client.lpush(QUEUE, with_properties(delivery_tag="tag-good"))
    tags = []

    def take(message):
        tags.append(message.delivery_tag)
        if message.delivery_tag == "tag-x1":
            message.payload["args"]
        message.ack()

    consume(connection, take, lambda: "tag-good" in tags)
    assert tags == ["tag-x1", "tag-good"]
    assert client.llen(QUEUE) == 0
    assert client.hlen("unacked") == 0
    assert "dropped what is no message: TypeError" in caplog.text


def test_what_is_no_fault_of_the_message_ends_the_reading(channel):
    connection, client = channel
    client.lpush(QUEUE, with_properties())

    def no_threads(message):
        raise RuntimeError("can't start new thread")

    with pytest.raises(RuntimeError, match="new thread"):
        consume(connection, no_threads, lambda: False)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://host", Transport),
        ("rediss://host?ssl_cert_reqs=required", Transport),
        ("redis+socket:///run/s", Transport),
        ("sentinel://one:1;sentinel://two:2", SentinelTransport),
    ],
)
def test_every_form_of_address_is_read_with_care(monkeypatch, url, expected):
    monkeypatch.setattr("kombu.transport.TRANSPORT_ALIASES", aliases := {})
    monkeypatch.setattr("worker.kombu_guard.TRANSPORT_ALIASES", aliases)
    monkeypatch.setattr("kombu.transport._transport_cache", {})
    be_careful()
    assert kombu.Connection(url).get_transport_cls() is expected


class CelerysLoop:
    """Reads as Celery's main loop does: a connection that broke is made anew, any other error ends
    it.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._messages = []

    @property
    def tags(self) -> list[str]:
        return [message.delivery_tag for message in self._messages]

    def read(self, until) -> None:
        def once() -> bool:
            at_once = {"max_retries": 1, "interval_start": 0, "interval_step": 0}
            connection = kombu.Connection(self._url, transport_options=at_once)
            connection.transport_cls = Transport
            try:
                with connection:
                    consume(connection, self._messages.append, until)
            except (kombu.exceptions.OperationalError, *Transport.connection_errors) as error:
                logging.getLogger("celery").warning("Connection lost: %s", error)
            return until()

        wait_for(once, "the messages")

    def acknowledge(self, tag: str) -> None:
        message = self._messages[self.tags.index(tag)]
        message.ack_log_error(logging.getLogger("test"), Transport.connection_errors)


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_no_refusal_of_the_server_is_an_error_of_the_program(valkey, caplog, monkeypatch, refusal):
    """Celery ends by such errors, but they pass: the server gets memory, or is promoted."""
    monkeypatch.setattr(kombu_guard, "PAUSE_S", 0.0)
    loop = CelerysLoop(valkey.url)
    with valkey.client() as client:
        client.flushall()
        for tag in ("tag-1", "tag-2"):
            client.lpush(QUEUE, with_properties(delivery_tag=tag))
        loop.read(lambda: "tag-2" in loop.tags)
        with refusal.under_way(client):
            loop.read(lambda: refusal.words in caplog.text)
            loop.acknowledge("tag-1")
        client.lpush(QUEUE, with_properties(delivery_tag="tag-3"))
        loop.read(lambda: "tag-3" in loop.tags)


def test_a_server_that_refused_is_not_asked_again_at_once(valkey, caplog, monkeypatch):
    """Whatever it refused, and however often: Celery logs each new connection."""
    monkeypatch.setattr(kombu_guard, "PAUSE_S", 0.5)
    begun = []
    establish = kombu.transport.redis.Transport.establish_connection

    def watched(self):
        begun.append(time.monotonic())
        return establish(self)

    monkeypatch.setattr(kombu.transport.redis.Transport, "establish_connection", watched)
    loop = CelerysLoop(valkey.url)
    with valkey.client() as client:
        client.flushall()
        loop.read(lambda: begun)
        with REFUSALS["a replica"].under_way(client):
            loop.read(lambda: len(begun) >= 4)
    pauses = [after - before for before, after in itertools.pairwise(begun[1:])]
    assert min(pauses) >= 0.5


@pytest.mark.parametrize("name", ["full", "a replica", "too few replicas"])
def test_a_worker_can_be_started_while_the_server_refuses_to_write(channel, name):
    """Kombu begins by looking for messages that somebody took long ago, under a lock."""
    connection, client = channel
    with REFUSALS[name].under_way(client):
        connection.connect()
        connection.transport.register_with_event_loop(connection.connection, Hub())


def test_a_server_that_is_full_still_gives_its_messages(valkey, caplog):
    """It refuses to note who has them. What was taken out of the queue is rendered all the same."""
    loop = CelerysLoop(valkey.url)
    with valkey.client() as client:
        client.flushall()
        client.lpush(QUEUE, with_properties(delivery_tag="tag-1"))
        client.lpush(QUEUE, with_properties(delivery_tag="tag-2"))
        with REFUSALS["full"].under_way(client):
            loop.read(lambda: len(loop.tags) == 2)
        assert loop.tags == ["tag-1", "tag-2"]


@pytest.mark.parametrize("name", ["a replica", "too few replicas"])
def test_a_message_whose_end_the_broker_does_not_note_makes_room_for_the_next(
    channel, caplog, name
):
    """Else a worker that is as busy as it may be takes nothing more, for ever."""
    connection, client = channel
    client.lpush(QUEUE, with_properties(delivery_tag="tag-1"))
    client.lpush(QUEUE, with_properties(delivery_tag="tag-2"))
    connection.default_channel.basic_qos(0, 1, False)
    taken = []
    queue = kombu.Queue(QUEUE, kombu.Exchange(""), routing_key=QUEUE)
    with kombu.Consumer(connection, [queue], on_message=taken.append, accept=["json"]):
        read(connection, lambda: taken)
        with REFUSALS[name].under_way(client):
            taken[0].ack_log_error(logging.getLogger("test"), Transport.connection_errors)
        assert REFUSALS[name].words in caplog.text
        read(connection, lambda: len(taken) == 2)
    assert taken[1].delivery_tag == "tag-2"
