"""Webhooks: URLs in manifests, what is sent and signed, addresses that are not contacted."""

from __future__ import annotations

import ipaddress
import json
import socket

import pytest

from jobs.cli.root import main
from jobs.errors import InputError, ManifestError
from jobs.folder.job_file import read_job_file
from jobs.folder.layout import JobFolder, JobKeys
from jobs.ledger import open_ledger
from jobs.ledger.memory.ledger import MemoryLedger
from jobs.ledger.types import JobState, JobStatus
from jobs.manifest.load import load_manifest
from jobs.manifest.schema import json_schema
from jobs.storage import LocalStore
from jobs.webhook import (
    AddressRefusedError,
    WebhookUrl,
    check_url,
    delivery_id,
    is_public,
    make_body,
    resolve,
    sign,
    verify,
)
from tests.jobs.manifests import write
from tests.ledgers import new_job

TEXT = "version: 1\nprompts: [a ring]\noutput: {store: out, webhook: %s}\n"


def ended(**values: object) -> JobStatus:
    ledger = MemoryLedger(lambda: 1_700_000_000.25)
    ledger.create(new_job("shapes", **values), done=range(9))
    ledger.set_state("shapes", JobState.CANCELLED)
    return ledger.status("shapes")


class TestManifest:
    def test_it_is_read(self, tmp_path):
        url = "https://example.com:8443/hook?a=b%20c"
        assert load_manifest(write(tmp_path, TEXT % url)).output.webhook == url

    def test_it_does_not_change_the_job(self, tmp_path):
        without = load_manifest(write(tmp_path, TEXT.replace(", webhook: %s", "")))
        told = load_manifest(write(tmp_path, TEXT % "https://example.com"))
        assert without.output.webhook is None
        assert told.job_id() == without.job_id()
        assert told.digest == without.digest

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("example.com/hook", "the URL is neither http:// nor https://; expected http://host/"),
            ("ftp://example.com", "the URL is neither http:// nor https://"),
            ("file:///etc/passwd", "the URL is neither http:// nor https://"),
            ("5", "the URL is neither http:// nor https://"),
            ("'http://'", "the URL has no valid host and port"),
            ("https:///hook", "the URL has no valid host and port"),
            ("https://a..b/", "the URL has no valid host and port"),
            ("https://a:0/", "the URL has no valid host and port"),
            ("https://a:99999/", "not a valid URL"),
            ("'https://[::1/'", "not a valid URL"),
            ("'https://[1.2.3.4]/'", "not a valid URL|no valid host"),
            ("'https://example.com/a#b'", "the URL has a fragment"),
            ("'https://example.com/a b'", "the URL holds a space"),
            ('"https://example.com/\\r\\nHost: a"', "the URL holds a space"),
            ("https://exämple.com", "a character beyond ASCII"),
            (f"https://a/{'x' * 2048}", "found a text of 2,058 characters, expected an http"),
            ("[https://a]", "found a list, expected an http:// or https:// URL of at most 2,048"),
            ("''", "found an empty text, expected an http"),
        ],
    )
    def test_what_is_no_url_of_a_webhook(self, tmp_path, url, message):
        with pytest.raises(ManifestError, match=message) as caught:
            load_manifest(write(tmp_path, TEXT % url))
        (problem,) = caught.value.problems
        assert (problem.path, problem.line) == ("output.webhook", 3)

    @pytest.mark.parametrize(
        "url",
        [
            "https://me:s3cret@example.com/",
            "https://s3cret@example.com/",
            "https://me:s3cret#@example.com/",
            "ftp://me:s3cret@example.com/",
            "'https://example.com\\@s3cret/'",
        ],
    )
    def test_passwords_are_refused_and_not_repeated(self, tmp_path, url):
        with pytest.raises(ManifestError, match=r"user name or password|not a valid") as caught:
            load_manifest(write(tmp_path, TEXT % url))
        assert "s3cret" not in str(caught.value)

    def test_it_is_in_the_json_schema(self):
        output = json_schema()["$defs"]["OutputFields"]["properties"]
        assert output["webhook"]["maxLength"] == 2048
        assert output["webhook"]["format"] == "uri"


class TestUrl:
    def test_its_parts(self):
        url = WebhookUrl.parse("HTTPS://Example.com/a?b=c")
        assert (url.scheme, url.host, url.port) == ("https", "example.com", 443)
        assert (url.target, url.authority) == ("/a?b=c", "example.com")
        assert WebhookUrl.parse("http://a").target == "/"
        assert WebhookUrl.parse("http://a:443?b").authority == "a:443"
        assert WebhookUrl.parse("http://[::1]:8/").authority == "[::1]:8"

    def test_logs_do_not_show_all_of_it(self):
        assert str(WebhookUrl.parse("https://a/s3cret?s3cret")) == "https://a/…"

    def test_it_is_checked_again_before_it_is_used(self):
        with pytest.raises(InputError, match="neither http"):
            WebhookUrl.parse("gopher://example.com")
        assert check_url("https://example.com") is None


class TestAddresses:
    @pytest.mark.parametrize(
        "address",
        [
            *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
            *("100.64.0.1", "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
            *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1"),
            *("ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254"),
            *("64:ff9b::a9fe:a9fe", "2002:7f00:1::1", "2001:0:1::1", "::7f00:1"),
            # What clouds answer their machines at.
            *("168.63.129.16", "192.0.0.192", "::ffff:168.63.129.16", "64:ff9b::c000:c0"),
            *("192.0.0.9", "64:ff9b:1::a9fe:a9fe"),
        ],
    )
    def test_not_public(self, address):
        assert not is_public(ipaddress.ip_address(address))

    @pytest.mark.parametrize(
        "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
    )
    def test_public(self, address):
        assert is_public(ipaddress.ip_address(address))

    @pytest.mark.parametrize(
        "host", ["127.0.0.1", "localhost", "2130706433", "127.1", "0x7f.0.0.1", "[::ffff:7f00:1]"]
    )
    def test_loopback_in_every_spelling(self, host):
        url = WebhookUrl.parse(f"http://{host}:8/")
        with pytest.raises(AddressRefusedError, match="which is not public; SDBATCH_WEBHOOK_PRIV"):
            resolve(url)
        assert resolve(url, allow_private=True)

    def test_one_bad_address_is_enough(self, monkeypatch):
        def lookup(host, port, **options):
            return [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
                for address in ("8.8.8.8", "8.8.4.4", found)
            ]

        monkeypatch.setattr(socket, "getaddrinfo", lookup)
        found = "8.8.8.8"
        assert resolve(WebhookUrl.parse("http://a")) == ["8.8.8.8", "8.8.4.4"]
        found = "10.0.0.1"
        with pytest.raises(AddressRefusedError, match=r"a has the address 10\.0\.0\.1"):
            resolve(WebhookUrl.parse("http://a"))


class TestBody:
    def test_what_is_told(self):
        status = ended()
        assert json.loads(make_body(status)) == {
            "version": 1,
            "event": "job.cancelled",
            "id": delivery_id(status),
            "job": "shapes",
            "name": "the shapes",
            "store": "s3://bucket/out",
            "images": 10,
            "done": 9,
            "failed": 0,
            "ended": "2023-11-14T22:13:20.250000Z",
        }

    def test_no_credentials_of_the_store(self):
        body = json.loads(make_body(ended(store="s3://key:s3cret@bucket/out@1")))
        assert body["store"] == "s3://bucket/out@1"
        assert json.loads(make_body(ended(store="/data/a@b")))["store"] == "/data/a@b"

    def test_each_end_has_its_own_id(self):
        now = [1_700_000_000.0]
        ledger = MemoryLedger(lambda: now[0])
        ids = set()
        for job_id in ("a", "b", "a"):
            ledger.create(new_job(job_id))
            now[0] += 0.000001
            ledger.set_state(job_id, JobState.CANCELLED)
            ids.add(delivery_id(ledger.status(job_id)))
            assert delivery_id(ledger.status(job_id)) in ids
        assert len(ids) == 3


class TestSignature:
    NOW = 1_700_000_000

    def test_it_is_verified(self):
        header = sign("secret", b"{}", self.NOW)
        assert header == (
            "t=1700000000,v1=b8569b78799ff9e3cbff0fc2d63a33a2b57f3282abd07c37ae5e8e7d79a5f163"
        )
        assert verify("secret", header, b"{}", now_s=self.NOW + 300)

    def test_of_now(self):
        assert verify("secret", sign("secret", b"{}"), b"{}")

    @pytest.mark.parametrize(
        ("secret", "body", "now_s"),
        [
            ("other", b"{}", NOW),
            ("secret", b"{ }", NOW),
            ("secret", b"{}", NOW + 301),
            ("secret", b"{}", NOW - 301),
        ],
    )
    def test_another_secret_body_or_time(self, secret, body, now_s):
        assert not verify(secret, sign("secret", b"{}", self.NOW), body, now_s=now_s)

    def test_the_time_is_signed(self):
        header = sign("secret", b"{}", self.NOW).replace("t=17", "t=18")
        assert not verify("secret", header, b"{}", now_s=1_800_000_000)

    @pytest.mark.parametrize(
        "header", [None, "", "t=1", "t=x,v1=y", "t=1,v1=é", "t=\N{ARABIC-INDIC DIGIT THREE},v1=0"]
    )
    def test_what_is_no_signature(self, header):
        assert not verify("secret", header, b"{}")

    def test_a_receiver_without_a_secret(self):
        with pytest.raises(ValueError, match="the secret is empty"):
            verify("", sign("", b"{}"), b"{}")


def test_submitting_brings_it_into_the_ledger(tmp_path, valkey):
    with valkey.client() as client:
        client.flushall()
    manifest, out = write(tmp_path, TEXT % "https://example.com/hook"), tmp_path / "out"
    assert main(["submit", str(manifest), "--store", str(out), "--redis", valkey.url]) == 0
    (job,) = open_ledger(valkey.url).jobs()
    assert job.webhook == "https://example.com/hook"
    assert read_job_file(JobFolder(LocalStore(out), JobKeys(job.job_id))).webhook == job.webhook
