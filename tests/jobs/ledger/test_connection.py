"""Addresses of Redis ledgers, and what is said when one cannot be used."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import ssl
import subprocess
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from jobs.errors import LedgerError
from jobs.ledger import open_ledger
from jobs.ledger.redis.connect import connect
from jobs.ledger.redis.ledger import RedisLedger
from jobs.ledger.types import JobState
from tests.ledgers import failure, new_job, run_out, take
from tests.servers import Valkey, everything, free_port, missing, wait_for

SECRET = "s3cr:t/@#?%"
QUOTED = "s3cr%3At%2F%40%23%3F%25"
START = (
    "start a Redis or Valkey server there (sdbatch local does, with workers), or give another "
    "address in SDBATCH_REDIS or --redis"
)


def said(ledger: RedisLedger) -> str:
    """What a person is told when the ledger is asked; never the password, however it is shown."""
    with pytest.raises(LedgerError) as caught:
        ledger.status("job")
    shown = [str(caught.value), repr(caught.value), repr(ledger)]
    shown += traceback.format_exception(caught.value)
    assert not any(word in text for text in shown for word in (SECRET, QUOTED, "s3cr"))
    return str(caught.value)


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """The port of something that says this to every command, or line."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                while data := self.request.recv(4096):
                    commands = len(re.findall(rb"(^|\r\n)\*\d+\r\n", data))
                    self.request.sendall(answer * commands)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


class TestAddresses:
    def test_options(self):
        client = connect(f"redis://me:{QUOTED}@host:1234/5?socket_timeout=2.5")
        options = client.connection_pool.connection_kwargs
        assert (options["host"], options["port"], options["db"]) == ("host", 1234, 5)
        assert (options["username"], options["password"]) == ("me", SECRET)
        assert options["socket_timeout"] == 2.5
        assert (options["socket_connect_timeout"], options["health_check_interval"]) == (5.0, 25)
        assert options["socket_keepalive"] is True

    def test_tls(self):
        client = connect("rediss://host/0?ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=no")
        pool = client.connection_pool
        assert pool.connection_class is redis.SSLConnection
        assert pool.connection_kwargs["ssl_ca_certs"] == "/etc/ca.pem"
        assert pool.connection_kwargs["ssl_check_hostname"] is False

    def test_sentinel(self):
        url = f"redis+sentinel://me:{QUOTED}@one:7001,two,[::1]:7003/main/4?socket_timeout=2.5"
        pool = connect(url).connection_pool
        assert pool.service_name == "main"
        options = pool.connection_kwargs
        assert (options["username"], options["password"]) == ("me", SECRET)
        assert (options["db"], options["socket_timeout"]) == (4, 2.5)
        asked = [s.connection_pool.connection_kwargs for s in pool.sentinel_manager.sentinels]
        assert [(a["host"], a["port"]) for a in asked] == [
            ("one", 7001),
            ("two", 26379),
            ("::1", 7003),
        ]
        assert all(a.get("password") is None for a in asked)

    def test_sentinel_of_the_first_database(self):
        assert connect("redis+sentinel://host/main").connection_pool.connection_kwargs["db"] == 0

    @pytest.mark.parametrize(
        ("url", "place"),
        [
            (f"redis://:{QUOTED}@host:1234/5", "host:1234"),
            (f"rediss://:{QUOTED}@host", "host:6379"),
            (f"redis://:{QUOTED}@[::1]:1234/5", "[::1]:1234"),
            (f"unix://:{QUOTED}@/run/redis.sock?db=3", "/run/redis.sock"),
            (f"redis+sentinel://:{QUOTED}@host/main", "service main of its Sentinels"),
        ],
    )
    def test_repr(self, url, place):
        assert repr(open_ledger(url)) == f"RedisLedger({place})"

    @pytest.mark.parametrize(
        "url",
        [
            "redis://:s3cret/word@host:6379/0",  # a slash that should be %2F
            "redis://me:s3cret#word@host:6379/0",
            "redis://host:s3cret/0",
            "redis://host:6379/0?socket_timeout=s3cret",
            "redis://[host:s3cret/0",
            "redis+sentinel://:s3cret/word@host:1/main",
            "redis+sentinel://host:s3cret/main",
            "redis+sentinel://host/main/s3cret",
            "redis+sentinel://a,,b/main",
            "redis+sentinel://host:26379",
            "redis+sentinel://host:26379/",
            "http://:s3cret@host",
            "s3cret",
        ],
    )
    def test_what_is_no_address(self, url):
        with pytest.raises(LedgerError) as caught:
            open_ledger(url)
        assert "address" in str(caught.value) or "no ledger is known" in str(caught.value)
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))


class TestCauses:
    def test_nobody_listens(self):
        port = free_port()
        text = said(open_ledger(f"redis://me:{QUOTED}@127.0.0.1:{port}/0"))
        assert text.startswith(f"ledger at 127.0.0.1:{port}: cannot connect: ")
        assert text.endswith(f"Connection refused; {START}")

    def test_no_such_host(self):
        text = said(open_ledger("redis://nowhere.invalid:1/0"))
        assert text.startswith("ledger at nowhere.invalid:1: cannot connect: ")
        assert text.endswith(f"; {START}")

    def test_no_such_socket(self, tmp_path):
        text = said(open_ledger(f"unix://{tmp_path}/none.sock"))
        assert text.startswith(f"ledger at {tmp_path}/none.sock: cannot connect: ")
        assert text.endswith(f"; {START}")

    def test_a_silent_server(self):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            ledger = open_ledger(f"redis://127.0.0.1:{port}/0?socket_timeout=0.05")
            assert f"ledger at 127.0.0.1:{port}: no answer in time" in said(ledger)

    @pytest.mark.parametrize(
        "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\0\0\r\n"]
    )
    def test_another_kind_of_server(self, answer):
        with answering(answer) as port:
            text = said(open_ledger(f"redis://127.0.0.1:{port}/0"))
        place = f"ledger at 127.0.0.1:{port}"
        assert text == f"{place}: what answers there is no Redis or Valkey server"

    @pytest.mark.parametrize(
        ("answer", "meaning"),
        [
            (b"-LOADING Redis is loading the dataset in memory", "still loading its data"),
            (b"-MISCONF Errors writing to the AOF file: No space left", "cannot save to its disk"),
            (b"-NOPERM this user has no permissions to run 'evalsha'", "this user may not do that"),
            (b"-MOVED 3999 127.0.0.1:6381", "a Redis Cluster, which is not supported"),
            (b"-MASTERDOWN Link with MASTER is down", "a replica that has lost its primary"),
            (b"-CLUSTERDOWN The cluster is down", "a Redis Cluster, which is not supported"),
            (b"-BUSY Redis is busy running a script", "it is busy with a script"),
            (b"-ERR max number of clients reached", "too many connections"),
            (
                # As Redis 6.2 says it.
                b"-ERR Error running script (call to f_1): @user_script:9: @user_script: 9: "
                b"-READONLY You can't write against a read only replica.",
                "a read-only replica",
            ),
            (b"-ERR something else", "something else"),
        ],
    )
    def test_what_servers_say(self, answer, meaning):
        with answering(answer + b"\r\n") as port:
            text = said(open_ledger(f"redis://127.0.0.1:{port}/0"))
        assert text.startswith(f"ledger at 127.0.0.1:{port}: ")
        assert meaning in text

    def test_passwords(self, tmp_path, valkey):
        server = Valkey(tmp_path, "--requirepass", SECRET)
        try:
            place = f"127.0.0.1:{server.port}"
            open_ledger(f"redis://:{QUOTED}@{place}/0").ping()
            wrong = said(open_ledger(f"redis://:{QUOTED}x@{place}/0"))
            assert wrong == f"ledger at {place}: wrong user name or password"
            nobody = said(open_ledger(f"redis://nobody:{QUOTED}@{place}/0"))
            assert nobody == f"ledger at {place}: wrong user name or password"
            none = said(open_ledger(f"redis://{place}/0"))
            assert none.startswith(f"ledger at {place}: it wants a password; give one in its URL")
        finally:
            server.kill()
        needless = said(open_ledger(f"redis://:{QUOTED}@127.0.0.1:{valkey.port}/0"))
        assert "it knows no password" in needless

    def test_no_such_database(self, valkey):
        assert "no database of that number" in said(
            open_ledger(f"redis://127.0.0.1:{valkey.port}/99")
        )

    def test_a_replica(self, tmp_path, valkey):
        replica = Valkey(tmp_path, "--replicaof", "127.0.0.1", str(valkey.port))
        try:
            ledger = open_ledger(replica.url)
            with pytest.raises(LedgerError, match="a read-only replica; give the address of its"):
                ledger.create(new_job())
        finally:
            replica.kill()

    def test_a_scripts_own_error_is_shown(self, valkey):
        ledger = open_ledger(valkey.url)
        with valkey.client() as client:
            client.flushall()
            client.set("sdbatch:leases", "no sorted set")
            with pytest.raises(LedgerError, match="WRONGTYPE"):
                ledger.expire()


class TestFull:
    """A full server: nothing new begins, nothing is half done, what is out can be finished."""

    @pytest.fixture
    def full(self, tmp_path) -> Iterator[tuple[RedisLedger, redis.Redis]]:
        server = Valkey(tmp_path)
        with server.client() as client:
            ledger = RedisLedger(client)
            ledger.create(new_job())
            ledger.publish("job", 2)
            client.config_set("maxmemory", 1)
            yield ledger, client
        server.kill()

    def test_nothing_begins(self, full):
        ledger, client = full
        before = everything(client)
        beginnings = [
            lambda: ledger.create(new_job("other")),
            lambda: ledger.create(new_job("other"), done=range(10)),
            lambda: ledger.create(new_job(), done=[5]),
            lambda: ledger.publish("job", 10),
            lambda: ledger.unclaimed("job", 0),
            lambda: ledger.lock("name", "owner", 60),
        ]
        for begin in beginnings:
            with pytest.raises(LedgerError, match="it is full; raise its maxmemory"):
                begin()
        assert everything(client) == before

    def test_a_retry_does_not_begin(self, full):
        ledger, client = full
        ledger.settle(take(ledger, 0), [0], [failure(1)])
        before = everything(client)
        for begin in (lambda: ledger.retry("job"), lambda: ledger.reopen("job", [0])):
            with pytest.raises(LedgerError, match="full"):
                begin()
        assert everything(client) == before

    def test_what_is_out_is_finished(self, full):
        ledger, _ = full
        first, second = take(ledger, 0), take(ledger, 1)
        assert ledger.heartbeat([first], [9]) == ["held"]
        assert ledger.settle(first, [0, 1, 2, 3])
        assert ledger.release(first) == 0
        run_out(ledger, second)
        assert len(ledger.expire()) == 1
        status = ledger.status("job")
        assert (status.done, status.evaluated, status.waiting) == (4, 9, 2)

    def test_a_job_may_be_stopped_and_removed(self, full):
        ledger, _ = full
        assert ledger.set_state("job", JobState.CANCELLED) == JobState.CANCELLED
        ledger.forget("job")
        assert ledger.jobs() == []

    def test_the_end_of_a_job_is_told(self, full):
        ledger, client = full
        client.config_set("maxmemory", 0)
        ledger.create(new_job("told", webhook="https://example.com"))
        client.config_set("maxmemory", 1)
        ledger.set_state("told", JobState.CANCELLED)
        ledger.end_delivery(ledger.take_delivery(0), again_after_s=0)
        ledger.end_delivery(ledger.take_delivery(0))
        assert ledger.take_delivery(0) is None

    def test_it_goes_on_when_there_is_room_again(self, full):
        ledger, client = full
        with pytest.raises(LedgerError):
            ledger.publish("job", 3)
        client.config_set("maxmemory", 0)
        assert [shard.number for shard in ledger.publish("job", 3)] == [2]


class TestOtherWays:
    def test_a_unix_socket(self, tmp_path):
        path = tmp_path / "s"
        server = Valkey(tmp_path, "--unixsocket", str(path))
        try:
            ledger = open_ledger(f"unix://{path}?db=3")
            assert ledger.create(new_job())
            with server.client(db=3) as client:
                assert client.exists("sdbatch:job:job")
        finally:
            server.kill()

    def test_tls(self, tmp_path, valkey):
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
            url = f"rediss://127.0.0.1:{port}/0"
            open_ledger(f"{url}?ssl_ca_certs={certificate}").ping()
            text = said(open_ledger(url))
            assert "certificate" in text.lower()
            assert START not in text

    def test_sentinel(self, sentinels):
        primary, _, sentinel = sentinels
        place = f"127.0.0.1:{sentinel.port}"
        ledger = open_ledger(f"redis+sentinel://{place}/main/1")
        assert ledger.create(new_job())
        with primary.client(db=1) as client:
            assert client.exists("sdbatch:job:job")
        assert said(open_ledger(f"redis+sentinel://{place}/other")) == (
            "ledger at service other of its Sentinels: "
            "no Sentinel that answers knows a primary of that name"
        )

    @pytest.mark.slow
    def test_failover(self, sentinels):
        old, new, sentinel = sentinels
        ledger = open_ledger(f"redis+sentinel://127.0.0.1:{sentinel.port}/main")
        ledger.create(new_job())
        with sentinel.client() as client, new.client() as replica:
            wait_for(lambda: replica.exists("sdbatch:job:job"), "the replica")
            wait_for(lambda: failover(client), "the failover to begin")
        wait_for(lambda: role(old) == "slave" and role(new) == "master", "the failover")

        def goes_on() -> bool:
            with contextlib.suppress(LedgerError):
                return bool(ledger.publish("job", 3))
            return False

        wait_for(goes_on, "the ledger to find the new primary")
        with new.client() as client:
            assert client.zcard("sdbatch:published:job") == 3


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[tuple[Valkey, Valkey, Valkey]]:
    """A primary called main, its replica, and a Sentinel that watches them."""
    with contextlib.ExitStack() as servers:

        def start(*options: str) -> Valkey:
            server = Valkey(Path(tempfile.mkdtemp(dir=tmp_path)), *options)
            servers.callback(server.kill)
            return server

        primary = start()
        replica = start("--replicaof", "127.0.0.1", str(primary.port))
        (tmp_path / "conf").write_text(f"sentinel monitor main 127.0.0.1 {primary.port} 1\n")
        yield primary, replica, start(str(tmp_path / "conf"), "--sentinel")


def role(server: Valkey) -> str:
    """Empty while the server ends its connections, as it does when its role changes."""
    with contextlib.suppress(redis.ConnectionError), server.client() as client:
        return client.info("replication")["role"]
    return ""


def failover(sentinel: redis.Redis) -> bool:
    """False as long as the Sentinel finds no replica good enough."""
    with contextlib.suppress(redis.ResponseError):
        return bool(sentinel.execute_command("SENTINEL FAILOVER main"))
    return False


@contextlib.contextmanager
def tls_before(port: int, certificate: Path, key: Path) -> Iterator[int]:
    """The port of a server that speaks TLS and passes everything on to a plain one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with (
                contextlib.suppress(OSError),
                context.wrap_socket(self.request, server_side=True) as client,
                socket.create_connection(("127.0.0.1", port)) as server,
            ):
                while data := client.recv(65536):
                    server.sendall(data)
                    client.sendall(server.recv(65536))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()
