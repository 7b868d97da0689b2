"""Tells webhooks of the ends of jobs: once if all goes well, again and again if it does not.

What is still to be told stands in the ledger, so another worker goes on when this one dies. A
receiver may be told twice, never knowingly by two workers at once.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import socket
import ssl
import threading
from collections.abc import Mapping

from jobs.errors import DamagedLedgerError, LedgerError, NotFoundError, SdbatchError
from jobs.ledger.base import Ledger
from jobs.ledger.types import WebhookDelivery
from jobs.webhook import WebhookUrl, delivery_id, make_body, resolve, sign

log = logging.getLogger(__name__)

AGAIN_AFTER_S = (5.0, 30.0, 120.0, 600.0, 3600.0)
"""Pauses after the first, second, … try that failed; after one more try it is given up."""

CONNECT_S = 5.0
WHOLE_S = 10.0
"""From the first connection to the answer's head; the answer's body is not read."""

HOLD_S = 120.0
"""A sender that says nothing for so long has died: some time for the name, and `WHOLE_S`."""

_PASSING = frozenset((408, 409, 425, 429))
"""Answers 4xx that may be others later."""

MOST_ADDRESSES = 3
"""Addresses of a host that are tried."""


class Notifier:
    """secret: signs what is sent. allow_private: also to addresses that are not public."""

    def __init__(
        self, ledger: Ledger, *, secret: str | None = None, allow_private: bool = False
    ) -> None:
        self._ledger = ledger
        self._secret = secret
        self._allow_private = allow_private
        self._thread: threading.Thread | None = None

    @property
    def sending(self) -> bool:
        """True while its thread is sending."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Until what has begun to be told is told."""
        if self._thread is not None:
            self._thread.join()

    def round(self) -> None:
        """Begins to tell what is due, in a thread of its own, unless that is still at it. Raises
        `LedgerError`.
        """
        if self.sending:
            return
        delivery = self._ledger.take_delivery(HOLD_S)
        if delivery is not None:
            self._thread = threading.Thread(
                target=self._tell_all, args=(delivery,), name="sdbatch-notify", daemon=True
            )
            self._thread.start()

    def _tell_all(self, delivery: WebhookDelivery | None) -> None:
        try:
            while delivery is not None:
                self._tell_whatever_comes(delivery)
                delivery = self._ledger.take_delivery(HOLD_S)
        except LedgerError as error:
            log.warning("telling webhooks failed, trying again: %s", error)

    def _tell_whatever_comes(self, delivery: WebhookDelivery) -> None:
        """Raises `LedgerError`, and nothing else: one job's webhook is not to stop the others'."""
        try:
            self.tell(delivery)
        except DamagedLedgerError as error:
            log.error("job %s: its webhook is not told: %s", delivery.job_id, error)
        except LedgerError:
            raise
        except Exception as error:
            log.exception("job %s: telling its webhook failed", delivery.job_id)
            if delivery.attempt > len(AGAIN_AFTER_S):  # else somebody takes it after HOLD_S
                self._give_up(delivery, type(error).__name__)

    def tell(self, delivery: WebhookDelivery) -> None:
        """One try. Raises `LedgerError`; the delivery is then told again."""
        try:
            status = self._ledger.status(delivery.job_id)
        except NotFoundError:
            return
        if status.ended_s != delivery.ended_s or status.webhook is None:
            self._ledger.end_delivery(delivery)
            return
        try:
            url = WebhookUrl.parse(status.webhook)
            body = make_body(status)
            headers = {
                "Content-Type": "application/json",
                "User-Agent": "sdbatch",
                "X-Sdbatch-Delivery": delivery_id(status),
            }
            if self._secret is not None:
                headers["X-Sdbatch-Signature"] = sign(self._secret, body)
            answer = post(url, body, headers, allow_private=self._allow_private)
        except SdbatchError as error:
            self._give_up(delivery, str(error))
        except (OSError, http.client.HTTPException) as error:
            self._again(delivery, url, str(error) or type(error).__name__)
        else:
            if 200 <= answer < 300:
                log.info("job %s: told %s", delivery.job_id, url)
                self._ledger.end_delivery(delivery)
            elif 400 <= answer < 500 and answer not in _PASSING:
                self._give_up(delivery, f"{url} answered {answer}")
            else:
                self._again(delivery, url, f"it answered {answer}")

    def _again(self, delivery: WebhookDelivery, url: WebhookUrl, why: str) -> None:
        if delivery.attempt > len(AGAIN_AFTER_S):
            self._give_up(delivery, f"{url}: {why}, after {delivery.attempt} tries")
            return
        after_s = AGAIN_AFTER_S[delivery.attempt - 1]
        log.warning("job %s: %s not told, again in %.0f s: %s", delivery.job_id, url, after_s, why)
        self._ledger.end_delivery(delivery, again_after_s=after_s)

    def _give_up(self, delivery: WebhookDelivery, why: str) -> None:
        log.error("job %s: its webhook is not told: %s", delivery.job_id, why)
        self._ledger.end_delivery(delivery)


def post(
    url: WebhookUrl, body: bytes, headers: Mapping[str, str], *, allow_private: bool = False
) -> int:
    """The status that the host answers to this body.

    Goes to the very address that was checked, with the host's name in Host and TLS; follows no
    redirects and uses no proxies. Raises `jobs.webhook.AddressRefusedError`, and `OSError` or
    `HTTPException` if there is no answer.
    """
    connection = http.client.HTTPConnection(url.host, url.port)
    connection.sock = sock = _open(url, allow_private=allow_private)
    # A host that answers byte by byte would keep within the socket's own timeout for ever.
    out_of_time = threading.Timer(WHOLE_S, _cut, (sock,))
    out_of_time.daemon = True
    out_of_time.start()
    try:
        if isinstance(sock, ssl.SSLSocket):
            sock.do_handshake()
        fields = {"Host": url.authority, "Connection": "close", **headers}
        connection.putrequest("POST", url.target, skip_host=True, skip_accept_encoding=True)
        for name, value in (fields | {"Content-Length": str(len(body))}).items():
            connection.putheader(name, value)
        connection.endheaders(body)
        return connection.getresponse().status
    finally:
        out_of_time.cancel()
        connection.close()


def _open(url: WebhookUrl, *, allow_private: bool) -> socket.socket:
    """A connection to the first address that takes it; for https before the handshake."""
    failed: OSError | None = None
    for address in resolve(url, allow_private=allow_private)[:MOST_ADDRESSES]:
        try:
            sock = socket.create_connection((address, url.port), timeout=CONNECT_S)
        except OSError as error:
            failed = error
            continue
        sock.settimeout(WHOLE_S)
        if url.scheme == "http":
            return sock
        return ssl.create_default_context().wrap_socket(
            sock, server_hostname=url.host.rstrip("."), do_handshake_on_connect=False
        )
    raise failed or OSError(f"{url.host} has no address")


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
