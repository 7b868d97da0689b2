"""What a worker's connection to the broker does with things that are no messages."""

from __future__ import annotations

import contextlib
import logging

import kombu
import pytest

from tests.servers import wait_for
from tests.worker.garbage import ENVELOPES, QUEUE, with_body, with_properties
from worker.incoming import SentinelTransport, Transport, be_careful


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

        def read() -> bool:
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
            return until()

        wait_for(read, "the messages")


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
    monkeypatch.setattr("worker.incoming.TRANSPORT_ALIASES", aliases)
    monkeypatch.setattr("kombu.transport._transport_cache", {})
    be_careful()
    assert kombu.Connection(url).get_transport_cls() is expected
