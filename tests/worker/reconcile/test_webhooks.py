"""Telling webhooks: through real connections on loopback, and from the ledger's notices."""

from __future__ import annotations

import contextlib
import http.server
import json
import logging
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

import worker.reconcile.webhooks
from jobs.ledger.memory.ledger import MemoryLedger
from jobs.ledger.types import JobState
from jobs.webhook import WebhookUrl, verify
from tests.ledgers import Clock, new_job
from tests.servers import free_port, missing, wait_for
from worker.reconcile.webhooks import AGAIN_AFTER_S, HOLD_S, Notifier, post

SECRET = "s3cret"


@dataclass
class Receiver:
    """A server that answers as told and keeps what it got. script: status of each answer; the last
    one goes on.
    """

    script: list[int] = field(default_factory=lambda: [204])
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0

    def url(self, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}/hook?key={SECRET}"


@contextlib.contextmanager
def receiving(context: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.got.append((self.path, dict(self.headers), body))
            status = receiver.script.pop(0) if len(receiver.script) > 1 else receiver.script[0]
            self.send_response(status)
            self.send_header("Location", receiver.url())
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def get_request(self):
            client, address = super().get_request()
            if context is not None:
                client = context.wrap_socket(
                    client, server_side=True, do_handshake_on_connect=False
                )
            return client, address

        def handle_error(self, *args: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        receiver.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield receiver
        server.shutdown()
        thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def names(monkeypatch) -> list[str]:
    """Any name under .test leads to loopback; the names that were asked for."""
    asked, real = [], socket.getaddrinfo

    def lookup(host, *args, **options):
        if str(host).endswith(".test"):
            asked.append(host)
            host = "127.0.0.1"
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return asked


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock) -> MemoryLedger:
    return MemoryLedger(clock)


def end(ledger: MemoryLedger, url: str, job_id: str = "job") -> None:
    ledger.create(new_job(job_id, webhook=url), done=range(10))
    assert ledger.set_state(job_id, JobState.DONE) == JobState.DONE


def told(ledger: MemoryLedger, **options: object) -> None:
    """One try."""
    notice = ledger.take_delivery(HOLD_S)
    assert notice is not None
    Notifier(ledger, **({"allow_private": True} | options)).tell(notice)


class TestTelling:
    def test_a_signed_body_and_no_second_one(self, ledger, receiver, clock):
        end(ledger, receiver.url())
        told(ledger, secret=SECRET)
        ((path, headers, body),) = receiver.got
        assert path == f"/hook?key={SECRET}"
        assert headers["Content-Type"] == "application/json"
        assert headers["User-Agent"] == "sdbatch"
        assert headers["Host"] == f"127.0.0.1:{receiver.port}"
        assert verify(SECRET, headers["X-Sdbatch-Signature"], body)
        document = json.loads(body)
        assert (document["event"], document["job"], document["done"]) == ("job.done", "job", 10)
        assert headers["X-Sdbatch-Delivery"] == document["id"]
        clock.now_s += 1e6
        assert ledger.take_delivery(HOLD_S) is None

    def test_without_a_secret_nothing_is_signed(self, ledger, receiver):
        end(ledger, receiver.url())
        told(ledger)
        ((_, headers, _),) = receiver.got
        assert "X-Sdbatch-Signature" not in headers

    @pytest.mark.parametrize("status", [500, 503, 302, 408, 409, 425, 429])
    def test_again_and_again_with_the_same_id(self, ledger, receiver, clock, status):
        receiver.script = [status, status, 200]
        end(ledger, receiver.url())
        told(ledger)
        for pause_s in AGAIN_AFTER_S[:2]:
            clock.now_s += pause_s - 1
            assert ledger.take_delivery(HOLD_S) is None
            clock.now_s += 1
            told(ledger)
        clock.now_s += 1e6
        assert ledger.take_delivery(HOLD_S) is None
        assert len(receiver.got) == 3
        assert len({headers["X-Sdbatch-Delivery"] for _, headers, _ in receiver.got}) == 1

    def test_until_it_is_given_up(self, ledger, receiver, clock, caplog):
        receiver.script = [500]
        end(ledger, receiver.url())
        for pause_s in (*AGAIN_AFTER_S, 1e6):
            told(ledger)
            clock.now_s += pause_s
        assert ledger.take_delivery(HOLD_S) is None
        assert len(receiver.got) == len(AGAIN_AFTER_S) + 1
        (given_up,) = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert "it answered 500, after 6 tries" in given_up.getMessage()
        assert SECRET not in caplog.text

    @pytest.mark.parametrize("status", [400, 401, 404, 410])
    def test_a_refusal_is_final(self, ledger, receiver, clock, caplog, status):
        receiver.script = [status]
        end(ledger, receiver.url())
        told(ledger)
        clock.now_s += 1e6
        assert ledger.take_delivery(HOLD_S) is None
        assert f"answered {status}" in caplog.text

    def test_nobody_there(self, ledger, clock, caplog):
        end(ledger, f"http://127.0.0.1:{free_port()}/{SECRET}")
        told(ledger)
        assert "again in 5 s" in caplog.text
        assert SECRET not in caplog.text
        clock.now_s += AGAIN_AFTER_S[0]
        assert ledger.take_delivery(HOLD_S).attempt == 2

    @pytest.mark.parametrize("url", ["file:///etc/passwd", "https://me:s3cret@localhost/"])
    def test_a_url_that_came_around_the_manifest(self, ledger, clock, caplog, url):
        end(ledger, url)
        told(ledger)
        clock.now_s += 1e6
        assert ledger.take_delivery(HOLD_S) is None
        assert "its webhook is not told" in caplog.text
        assert SECRET not in caplog.text

    def test_a_job_that_has_gone_on_since(self, ledger, receiver):
        ledger.create(new_job(webhook=receiver.url()))
        ledger.set_state("job", JobState.CANCELLED)
        notice = ledger.take_delivery(HOLD_S)
        ledger.create(new_job(webhook=receiver.url()))
        Notifier(ledger, allow_private=True).tell(notice)
        ledger.forget("job")
        Notifier(ledger, allow_private=True).tell(notice)
        assert receiver.got == []


class TestAddresses:
    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "hook.test"])
    def test_private_ones_are_not_contacted(self, ledger, receiver, clock, caplog, names, host):
        end(ledger, receiver.url(host))
        told(ledger, allow_private=False)
        clock.now_s += 1e6
        assert ledger.take_delivery(HOLD_S) is None
        assert receiver.got == []
        assert "which is not public" in caplog.text

    def test_the_address_is_the_one_that_was_checked(self, receiver, names):
        assert post(WebhookUrl.parse(receiver.url("a.test")), b"{}", {}, allow_private=True) == 204
        assert names == ["a.test"]  # asked for once: there is no second answer to trust
        ((_, headers, _),) = receiver.got
        assert headers["Host"] == f"a.test:{receiver.port}"

    def test_no_redirect_is_followed_and_no_proxy_used(self, receiver, monkeypatch):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
        receiver.script = [307, 204]
        assert post(WebhookUrl.parse(receiver.url()), b"{}", {}, allow_private=True) == 307
        assert len(receiver.got) == 1

    def test_the_next_address_if_one_does_not_answer(self, receiver, monkeypatch):
        addresses = [("127.0.0.2", receiver.port), ("127.0.0.1", receiver.port)]
        real = socket.getaddrinfo

        def lookup(host, *args, **options):
            if host == "two.test":
                return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", a) for a in addresses]
            return real(host, *args, **options)

        monkeypatch.setattr(socket, "getaddrinfo", lookup)
        url = WebhookUrl.parse(receiver.url("two.test"))
        assert post(url, b"{}", {}, allow_private=True) == 204


class TestTls:
    @pytest.fixture
    def secure(self, tmp_path, monkeypatch) -> Iterator[Receiver]:
        """A receiver called hook.test, whose certificate is trusted."""
        certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        command += ["-subj", "/CN=hook", "-addext", "subjectAltName=DNS:hook.test"]
        try:
            subprocess.run(
                [*command, "-keyout", key, "-out", certificate], check=True, capture_output=True
            )
        except FileNotFoundError:
            missing("openssl")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with receiving(context) as receiver:
            yield receiver

    def test_the_name_is_verified_though_the_address_is_used(self, secure, names):
        url = WebhookUrl.parse(secure.url("hook.test", "https"))
        assert post(url, b"{}", {}, allow_private=True) == 204
        ((_, headers, _),) = secure.got
        assert headers["Host"] == f"hook.test:{secure.port}"

    @pytest.mark.parametrize("host", ["other.test", "127.0.0.1"])
    def test_another_name(self, secure, names, host):
        url = WebhookUrl.parse(secure.url(host, "https"))
        with pytest.raises(ssl.SSLCertVerificationError):
            post(url, b"{}", {}, allow_private=True)
        assert secure.got == []

    def test_a_certificate_that_nobody_trusts(self, secure, names, monkeypatch):
        monkeypatch.delenv("SSL_CERT_FILE")
        url = WebhookUrl.parse(secure.url("hook.test", "https"))
        with pytest.raises(ssl.SSLCertVerificationError):
            post(url, b"{}", {}, allow_private=True)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_host_that_answers_for_ever(monkeypatch, scheme):
    """It sends a byte now and then, so that no single read is ever out of time."""
    monkeypatch.setattr(worker.reconcile.webhooks, "WHOLE_S", 0.3)
    over = threading.Event()

    def drip(server: socket.socket) -> None:
        client, _ = server.accept()
        with client, contextlib.suppress(OSError):
            client.sendall(b"HTTP/1.1 2" if scheme == "http" else b"\x16\x03\x03\x40\x00")
            while not over.wait(0.02):
                client.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        url = WebhookUrl.parse(f"{scheme}://127.0.0.1:{server.getsockname()[1]}/")
        with pytest.raises((OSError, worker.reconcile.webhooks.http.client.HTTPException)):
            post(url, b"{}", {}, allow_private=True)
        over.set()
        thread.join()


class TestRounds:
    def test_all_that_is_due_is_told_aside(self, ledger, receiver):
        for number in range(3):
            end(ledger, receiver.url(), f"job-{number}")
        notifier = Notifier(ledger, allow_private=True)
        notifier.round()
        wait_for(lambda: len(receiver.got) == 3, "three deliveries")

    def test_a_round_does_not_wait_for_a_slow_receiver(self, ledger, monkeypatch):
        asked, answer = threading.Semaphore(0), threading.Event()

        def slow(url, *args, **options):
            asked.release()
            answer.wait()
            return 204

        monkeypatch.setattr(worker.reconcile.webhooks, "post", slow)
        for job_id in ("a", "b"):
            end(ledger, "http://a/", job_id)
        notifier = Notifier(ledger)
        notifier.round()
        asked.acquire()
        notifier.round()  # and does not begin a second thread
        assert ledger.take_delivery(HOLD_S).job_id == "b"
        answer.set()
        wait_for(lambda: not notifier.sending, "the end of the sending")

    def test_the_next_round_begins_again(self, ledger, receiver):
        notifier = Notifier(ledger, allow_private=True)
        for number in range(2):
            end(ledger, receiver.url(), f"job-{number}")
            notifier.round()
            wait_for(lambda: not notifier.sending, "the end of the sending")
        assert len(receiver.got) == 2

    def test_what_nobody_expects_of_one_job_stops_no_other(
        self, ledger, receiver, clock, monkeypatch, caplog
    ):
        body = worker.reconcile.webhooks.make_body

        def odd(status):
            if status.job_id == "a-odd":
                raise KeyError("ended")
            return body(status)

        monkeypatch.setattr(worker.reconcile.webhooks, "make_body", odd)
        for job_id in ("a-odd", "b-good"):
            end(ledger, receiver.url(), job_id)
        notifier = Notifier(ledger, allow_private=True)
        notifier.round()
        wait_for(lambda: not notifier.sending, "the end of the sending")
        assert len(receiver.got) == 1
        assert "job a-odd: telling its webhook failed" in caplog.text
        for _ in AGAIN_AFTER_S:  # it is tried again, but not for ever
            clock.now_s += HOLD_S
            notifier.round()
            wait_for(lambda: not notifier.sending, "the end of the sending")
        clock.now_s += HOLD_S
        assert ledger.take_delivery(HOLD_S) is None
        assert len(receiver.got) == 1
