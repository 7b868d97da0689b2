"""The broker's address: what Celery is given for each form that the ledger takes."""

from __future__ import annotations

import subprocess

import pytest
from celery import Celery

from jobs.errors import LedgerError
from jobs.ledger import open_ledger
from jobs.ledger.types import Shard
from jobs.queue.broker import TRANSPORT_OPTIONS, broker_settings
from jobs.queue.messages import CeleryQueue, celery_settings
from tests.jobs.ledger.test_connection import sentinels, tls_before  # noqa: F401 - a fixture
from tests.servers import Valkey, missing

SHARD = Shard("shapes-1a2b", 3, 192, 256)
PASSWORD = "p@/:#?;w"
QUOTED = "p%40%2F%3A%23%3F%3Bw"


def understood(url: str) -> dict[str, object]:
    """What Celery's transport makes of it."""
    app = Celery(set_as_current=False)
    app.conf.update(celery_settings(url))
    with app.connection_for_write() as connection:
        return connection.info() | {"said": connection.as_uri()}


@pytest.mark.parametrize(
    ("url", "broker"),
    [
        ("redis://host", "redis://host:6379/0"),
        ("redis://:7000/2", "redis://127.0.0.1:7000/2"),
        (f"redis://me:{QUOTED}@host:1/2", f"redis://me:{QUOTED}@host:1/2"),
        ("redis://me@[::1]?db=3&password=pw", "redis://me:pw@[::1]:6379/3"),
        ("rediss://host/1", "rediss://host:6379/1?ssl_cert_reqs=required"),
        (
            "rediss://host?ssl_ca_certs=/a%20b&ssl_check_hostname=no&ssl_cert_reqs=none",
            "rediss://host:6379/0?ssl_ca_certs=%2Fa+b&ssl_cert_reqs=none&ssl_check_hostname=false",
        ),
        ("unix:///run/s", "redis+socket:///run/s?virtual_host=0"),
        (f"unix://:{QUOTED}@/a%20b/s?db=3", f"redis+socket://:{QUOTED}@/a%20b/s?virtual_host=3"),
        ("redis+sentinel://one/main", "sentinel://one:26379/0"),
        (
            f"redis+sentinel://me:{QUOTED}@one:7001,[::1]:7003/main/4",
            f"sentinel://me:{QUOTED}@one:7001/4;sentinel://me:{QUOTED}@[::1]:7003/4",
        ),
        (
            "redis+sentinel://one/main?ssl=true",
            "sentinel://one:26379/0?ssl_cert_reqs=required",
        ),
    ],
)
def test_urls(url, broker):
    assert broker_settings(url)[0] == broker
    said = understood(url)["said"]
    assert PASSWORD not in said
    assert QUOTED not in said


@pytest.mark.parametrize("form", ["redis://{}@host/1", "redis+sentinel://{}@a,b/main/1"])
def test_names_and_passwords_arrive_as_they_are(form):
    info = understood(form.format(f"me:{QUOTED}"))
    assert (info["userid"], info["password"], info["virtual_host"]) == ("me", PASSWORD, "1")


def test_options():
    assert broker_settings("redis://host")[1] == TRANSPORT_OPTIONS
    url = "redis://host?socket_timeout=2.5&socket_keepalive=no&db=3"
    changed = {"socket_timeout": 2.5, "socket_keepalive": False}
    assert broker_settings(url)[1] == {**TRANSPORT_OPTIONS, **changed}
    options = broker_settings("redis+sentinel://one/main")[1]
    assert options["master_name"] == "main"
    assert options["visibility_timeout"] == TRANSPORT_OPTIONS["visibility_timeout"]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "memory://",
        "amqp://s3cret@host",
        "redis://:s3cret/word@host:1",
        "redis://:s3cret#@host",
        "unix://s3cret",
        "redis+sentinel://host:26379",
        "redis+sentinel://a,,b/main",
        "redis+sentinel://host/main/s3cret",
        "rediss://host?ssl_cert_reqs=s3cret",
    ],
)
def test_no_broker(url):
    with pytest.raises(LedgerError, match="the address of the Redis server") as caught:
        CeleryQueue(url)
    assert "s3cret" not in str(caught.value)


def sent_through(url: str) -> None:
    """The ledger answers at the URL, and so does the queue."""
    open_ledger(url).ping()
    queue = CeleryQueue(url)
    assert queue.length("demo") == 0
    queue.send("demo", [SHARD, SHARD])
    assert queue.length("demo") == 2
    assert PASSWORD not in repr(queue)
    assert QUOTED not in repr(queue)


def test_through_a_unix_socket(tmp_path):
    path = tmp_path / "a s"
    server = Valkey(tmp_path, "--unixsocket", str(path), "--requirepass", PASSWORD)
    try:
        sent_through(f"unix://:{QUOTED}@{str(path).replace(' ', '%20')}?db=3")
        with server.client(db=3, password=PASSWORD) as client:
            assert client.llen("sdbatch.demo") == 2
    finally:
        server.kill()


def test_through_sentinels(sentinels):  # noqa: F811
    primary, _, sentinel = sentinels
    sent_through(f"redis+sentinel://127.0.0.1:{sentinel.port}/main/1")
    with primary.client(db=1) as client:
        assert client.llen("sdbatch.demo") == 2


def test_through_tls_with_a_certificate_that_is_checked(tmp_path, valkey):
    with valkey.client() as client:
        client.flushall()
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run(
            [*command, "-keyout", key, "-out", certificate], check=True, capture_output=True
        )
    except FileNotFoundError:
        missing("openssl")
    with tls_before(valkey.port, certificate, key) as port:
        sent_through(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}")
        with pytest.raises(LedgerError, match="certificate"):
            CeleryQueue(f"rediss://127.0.0.1:{port}/0").length("demo")
