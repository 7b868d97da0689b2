"""The S3 store: addresses, and what goes wrong with servers, real ones and one that obeys."""

from __future__ import annotations

import hashlib
import logging
import socket
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.errors import DamagedError, ExitCode, NotFoundError, StoreError, StoreFullError
from jobs.storage import Store, open_store
from jobs.storage.s3 import client as s3_client
from jobs.storage.s3 import conditional_put as s3_first
from jobs.storage.s3 import store as s3
from tests.jobs.storage.s3_fake import CUT, LOST, Answer, FakeS3, running_fake
from tests.servers_s3 import BUCKET, READER, WRITER, Keys, S3Server, log_in

TOKEN = "session/token+0123456789"


@pytest.fixture
def real(s3_address: str) -> Store:
    return open_store(s3_address)


@pytest.fixture
def fake(aws: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    with running_fake() as server:
        log_in(aws, server.endpoint)
        aws.setenv("AWS_SESSION_TOKEN", TOKEN)
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is not tried again, as after many tries."""
    monkeypatch.setattr(s3, "RETRIES", 0)
    monkeypatch.setattr(s3, "CHECK_RETRIES", 0)
    monkeypatch.setattr(s3, "PATIENCE_S", 0)


def every_call(store: Store) -> dict[str, Callable[[], object]]:
    return {
        "check": store.check_writable,
        "put": lambda: store.put("job/key", b"x"),
        "overwrite": lambda: store.put("job/key", b"x", overwrite=True),
        "get": lambda: store.get("job/key"),
        "head": lambda: store.head("job/key"),
        "list": lambda: list(store.list("job/")),
        "delete": lambda: store.delete("job/key"),
    }


def assert_all_fail(store: Store, message: str, *, but: tuple[str, ...] = ()) -> None:
    for name, call in every_call(store).items():
        if name in but:
            continue
        with pytest.raises(StoreError, match=message) as caught:
            call()
        assert caught.value.exit_code == ExitCode.STORE, name
        for secret in (WRITER.secret, READER.secret, WRITER.key_id, TOKEN):
            assert secret not in str(caught.value), name


class TestAddress:
    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("s3://", "names no bucket"),
            ("s3:///prefix", "names no bucket"),
            ("s3://ab", "'ab' is no bucket name"),
            ("s3://My-Bucket/x", "'My-Bucket' is no bucket name"),
            ("s3://a..b", "no bucket name"),
            ("s3://192.168.0.1/x", "no bucket name"),
            ("s3://-bucket", "no bucket name"),
            (f"s3://{'b' * 64}", "no bucket name"),
            ("s3://bucket?x=1", "no bucket name"),
            ("s3://host:9000/bucket", "AWS_ENDPOINT_URL"),
            ("s3://bucket/../other", "s3://bucket: as a prefix, .* would leave its folder"),
            ("s3://bucket/a//b", "as a prefix, .* two slashes in a row"),
            ("s3://bucket/a/.tmp-x", "the store's own"),
        ],
    )
    def test_refused(self, url: str, message: str):
        with pytest.raises(StoreError, match=message):
            open_store(url)

    @pytest.mark.parametrize(
        ("endpoint", "message"),
        [
            ("localhost:8333", "expected http://host:port"),
            ("ftp://host", "'ftp://host' is not valid"),
            ("http://", "is not valid"),
            ("http://[::1", "is not valid"),
            ("http://host:99999", "is not valid"),
            ("http://host/ x", "is not valid"),
            ("http://host?x=1", "is not valid"),
        ],
    )
    def test_endpoint_refused(self, aws: pytest.MonkeyPatch, endpoint: str, message: str):
        with pytest.raises(StoreError, match=message):
            open_store("s3://bucket", endpoint=endpoint)
        aws.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StoreError, match="not valid; expected http://host:port"):
            open_store("s3://bucket").head("key")

    @pytest.mark.parametrize(
        "url",
        [
            "s3://me:hunter2@bucket/x",
            "s3://me:hun/ter2@bucket/x",
            "s3://ME/hunter2@host:1/x",
            "s3://hunter2@bucket",
            "https://me:hun/ter2@host/bucket",
        ],
    )
    def test_no_password_is_repeated(self, url: str):
        with pytest.raises(StoreError) as caught:
            open_store(url)
        assert "hun" not in str(caught.value)
        assert "ter2" not in str(caught.value)

    def test_no_password_of_an_endpoint_is_repeated(self, aws: pytest.MonkeyPatch):
        for endpoint in ("http://me:hunter2@host:1", "http://me:hun/ter2@host", "me:hunter2@host"):
            with pytest.raises(StoreError, match="user name or password") as caught:
                open_store("s3://bucket", endpoint=endpoint)
            assert "ter2" not in str(caught.value)
            aws.setenv("AWS_ENDPOINT_URL", endpoint)
            with pytest.raises(StoreError, match="S3") as caught:
                open_store("s3://bucket").get("key")
            assert "ter2" not in str(caught.value)

    def test_url_and_repr(self):
        assert open_store("s3://bucket").url("a b/ü.png") == "s3://bucket/a b/ü.png"
        store = open_store("s3://bucket/deep/prefix/", endpoint="http://host:1")
        assert store.url("key") == "s3://bucket/deep/prefix/key"
        assert repr(store) == "S3Store('s3://bucket/deep/prefix')"

    def test_opening_contacts_nothing(self, fake: FakeS3):
        open_store("s3://bucket/x", endpoint=fake.endpoint)
        assert fake.seen == []

    def test_local_use_does_not_import_boto3(self):
        code = (
            "import sys, jobs.cli, jobs.storage; jobs.storage.open_store('out')\n"
            "print('botocore' in sys.modules)\n"
            "jobs.storage.open_store('s3://bucket')\n"
            "print('botocore' in sys.modules)\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert run.stdout.split() == ["False", "True"]

    def test_key_and_prefix_together_have_a_limit(self):
        store = open_store("s3://bucket/" + "/".join(["p" * 200] * 4))
        assert store.url("k" * 200).endswith("k")
        with pytest.raises(StoreError, match="1024 bytes with the store's prefix"):
            store.url("k" * 250)

    def test_hosts_and_paths(self, aws: pytest.MonkeyPatch, tmp_path: Path):
        def style(endpoint: str | None) -> object:
            client = s3_client.Clients(endpoint).get(0)
            url = client.generate_presigned_url("get_object", Params={"Bucket": "b-u", "Key": "k"})
            return s3_client.is_aws(client), url.partition("?")[0]

        log_in(aws, "http://host:1")
        assert style(None) == (False, "http://host:1/b-u/k")
        assert style("https://s3.example.org") == (False, "https://s3.example.org/b-u/k")
        aws.delenv("AWS_ENDPOINT_URL")
        assert style(None) == (True, "https://b-u.s3.amazonaws.com/k")
        (tmp_path / "aws-config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
        assert style("https://s3.example.org") == (False, "https://b-u.s3.example.org/k")


class TestRealServer:
    def test_metadata_and_content_type(self, real: Store, s3_server: S3Server):
        real.put("job/a.png", b"pixels")
        real.put("job/b.html", b"text", overwrite=True)
        info = real.head("job/a.png")
        assert info is not None
        assert info.metadata == {"sha256": hashlib.sha256(b"pixels").hexdigest()}
        kept = s3_server.client().head_object(
            Bucket=BUCKET, Key=real.url("job/a.png").removeprefix(f"s3://{BUCKET}/")
        )
        assert kept["ContentType"] == "image/png"
        assert kept["Metadata"].items() >= info.metadata.items()
        other = s3_server.client().head_object(
            Bucket=BUCKET, Key=real.url("job/b.html").removeprefix(f"s3://{BUCKET}/")
        )
        assert other["ContentType"] == "text/html; charset=utf-8"

    def test_a_whole_bucket_and_parts_of_it(self, s3_address: str, s3_server: S3Server):
        bucket = uuid.uuid4().hex
        s3_server.client().create_bucket(Bucket=bucket)
        whole, a, ab = (open_store(f"s3://{bucket}{part}") for part in ("", "/a", "/ab/"))
        a.put("x", b"1", overwrite=True)
        ab.put("x", b"2", overwrite=True)
        assert [info.key for info in a.list("")] == ["x"]
        assert [info.key for info in ab.list("")] == ["x"]
        assert [info.key for info in whole.list("")] == ["a/x", "ab/x"]
        assert [info.key for info in whole.list("a")] == ["a/x", "ab/x"]
        assert a.get("x") == whole.get("a/x") == b"1"

    def test_what_is_no_key_is_not_listed(self, real: Store, s3_server: S3Server):
        real.put("job/a", b"", overwrite=True)
        root = real.url("job").removeprefix(f"s3://{BUCKET}/")
        for name in ("/folder/", "/.tmp-probe-1", "/x/.tmp-2"):
            s3_server.client().put_object(Bucket=BUCKET, Key=root + name, Body=b"")
        assert [info.key for info in real.list("")] == ["job/a"]

    def test_probes_are_removed(self, real: Store, s3_server: S3Server):
        real.check_writable()
        root = real.url("x").removeprefix(f"s3://{BUCKET}/").removesuffix("x")
        assert s3_server.client().list_objects_v2(Bucket=BUCKET, Prefix=root)["KeyCount"] == 0

    def test_wrong_secret(self, real: Store, aws: pytest.MonkeyPatch, s3_server: S3Server):
        log_in(aws, s3_server.endpoint, Keys(WRITER.key_id, READER.secret))
        assert_all_fail(real, "AWS_SECRET_ACCESS_KEY")

    def test_unknown_key_id(self, real: Store, aws: pytest.MonkeyPatch, s3_server: S3Server):
        log_in(aws, s3_server.endpoint, Keys("NOBODY", WRITER.secret))
        assert_all_fail(real, "does not know this access key id; check AWS_ACCESS_KEY_ID")

    def test_no_such_bucket(self, real: Store, s3_server: S3Server):
        missing = open_store("s3://no-such-bucket/prefix")
        assert_all_fail(missing, f"^s3://no-such-bucket/.*no such bucket at {s3_server.endpoint}")

    def test_read_only(self, real: Store, aws: pytest.MonkeyPatch, s3_server: S3Server):
        real.put("job/key", b"x", overwrite=True)
        log_in(aws, s3_server.endpoint, READER)
        reader = open_store(real.url("job").removesuffix("/job"))
        assert reader.get("job/key") == b"x"
        assert reader.head("job/key") is not None
        assert reader.head("job/none") is None
        assert [info.key for info in reader.list("")] == ["job/key"]
        denied = r"access denied: these credentials may not (write|delete) here \(s3:"
        assert_all_fail(reader, denied, but=("get", "head", "list"))
        assert real.get("job/key") == b"x"

    def test_a_folder_where_an_object_should_be(self, real: Store, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(s3_first, "CONFLICT_PAUSES_S", (0, 0))
        real.put("job/a", b"")
        with pytest.raises(StoreError, match=r"/job: the server refuses it .* in the way"):
            real.put("job", b"")
        assert [info.key for info in real.list("")] == ["job/a"]

    def test_listing_in_the_servers_order(self, real: Store, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(s3, "is_aws", lambda _: True)
        monkeypatch.setattr(s3, "PAGE_KEYS", 2)
        names = [f"{folder}/{number}" for folder in "ab" for number in range(5)]
        for name in names:
            real.put(name, b"", overwrite=True)
        assert [info.key for info in real.list("")] == names

    def test_a_restart_is_waited_for(self, aws: pytest.MonkeyPatch, tmp_path: Path):
        server = S3Server(tmp_path)
        try:
            server.start()
            log_in(aws, server.endpoint)
            aws.setattr(s3, "RETRIES", 0)
            aws.setattr(s3, "PAUSE_S", 0.1)
            store = open_store(f"s3://{BUCKET}/x")
            assert store.put("before", b"1")
            server.stop()
            with ThreadPoolExecutor(8) as pool:
                putting = [pool.submit(store.put, f"during/{n}", b"%d" % n) for n in range(8)]
                with pytest.raises(StoreError, match=f"{server.endpoint} does not answer"):
                    store.check_writable()
                assert not any(future.done() for future in putting)
                server.start()
                assert all(future.result() for future in putting)
            assert [info.key for info in store.list("during/")] == [f"during/{n}" for n in range(8)]
            assert store.get("before") == b"1"
        finally:
            server.stop()


class TestNoServer:
    def test_nobody_listens(self, aws: pytest.MonkeyPatch, impatient: None):
        with socket.socket() as taken:  # bound, but it does not listen
            taken.bind(("127.0.0.1", 0))
            endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
            log_in(aws, endpoint)
            assert_all_fail(open_store("s3://bucket"), f"{endpoint} does not answer; is the server")

    def test_no_such_host(self, aws: pytest.MonkeyPatch, impatient: None):
        log_in(aws, "http://s3.invalid:9000")
        with pytest.raises(StoreError, match=r"host of http://s3\.invalid:9000 is not known"):
            open_store("s3://bucket").check_writable()

    def test_no_tls(self, fake: FakeS3, impatient: None):
        endpoint = fake.endpoint.replace("http:", "https:")
        store = open_store("s3://bucket", endpoint=endpoint)
        with pytest.raises(StoreError, match=f"no secure connection to {endpoint}: .*SSL"):
            store.check_writable()

    def test_silence(self, aws: pytest.MonkeyPatch, impatient: None):
        aws.setattr(s3_client, "READ_TIMEOUT_S", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            log_in(aws, f"http://127.0.0.1:{silent.getsockname()[1]}")
            with pytest.raises(StoreError, match="does not answer in time"):
                open_store("s3://bucket").get("key")

    def test_no_credentials(self, fake: FakeS3, aws: pytest.MonkeyPatch):
        for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"):
            aws.delenv(name)
        assert_all_fail(open_store("s3://bucket"), "no credentials found; set AWS_ACCESS_KEY_ID")
        assert fake.seen == []

    def test_half_the_credentials(self, fake: FakeS3, aws: pytest.MonkeyPatch):
        aws.delenv("AWS_SECRET_ACCESS_KEY")
        store = open_store("s3://bucket")
        assert_all_fail(store, "credentials are incomplete: AWS_SECRET_ACCESS_KEY is missing")

    def test_no_such_profile(self, fake: FakeS3, aws: pytest.MonkeyPatch):
        aws.setenv("AWS_PROFILE", "nobody")
        assert_all_fail(open_store("s3://bucket"), r"profile \(nobody\).*check AWS_PROFILE")

    def test_credential_helpers_are_not_quoted(self, aws: pytest.MonkeyPatch, tmp_path: Path):
        (tmp_path / "aws-config").write_text(
            "[default]\ncredential_process = sh -c 'echo hunter2 >&2; exit 1'\n"
        )
        with pytest.raises(StoreError, match="credentials or the AWS configuration") as caught:
            open_store("s3://bucket", endpoint="http://host:1").get("key")
        assert "hunter2" not in str(caught.value)

    def test_bad_region(self, fake: FakeS3, aws: pytest.MonkeyPatch):
        aws.setenv("AWS_DEFAULT_REGION", "not a region")
        assert_all_fail(open_store("s3://bucket"), "'not a region'")


WRONG_REGION = {"x-amz-bucket-region": "eu-north-1"}
HTML = b"<html><body>Welcome</body></html>"


class TestAnswers:
    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (Answer(403, "AccessDenied"), "access denied: these credentials may not"),
            (Answer(403), "access denied: these credentials may not"),
            (Answer(400, "ExpiredToken"), "session token expired"),
            (Answer(400, "InvalidToken"), "AWS_SESSION_TOKEN"),
            (Answer(403, "RequestTimeTooSkewed"), "machine's clock .* time synchronisation"),
            (
                Answer(301, "PermanentRedirect", headers=WRONG_REGION),
                "in the region eu-north-1; set AWS_DEFAULT_REGION=eu-north-1",
            ),
            (
                Answer(400, "AuthorizationHeaderMalformed", detail="<Region>eu-north-1</Region>"),
                "in the region eu-north-1; set AWS_DEFAULT_REGION=eu-north-1",
            ),
            (Answer(400, "AuthorizationHeaderMalformed"), "in another region"),
            (Answer(301, headers={"Location": "https://127.0.0.1:1/"}), "whether it wants https"),
            (Answer(500, "InternalError"), r"fails \(500 InternalError\); its log says why"),
            (Answer(404, body=HTML), "does not answer as an S3 server"),
            (Answer(501), "does not answer as an S3 server"),
            (Answer(400, "Odd"), r"refuses to (read|write|list|delete) \(400 Odd\)"),
        ],
    )
    def test_causes(self, fake: FakeS3, impatient: None, answer: Answer, message: str):
        fake.always = dict.fromkeys(("PUT", "GET", "HEAD", "DELETE"), answer)
        assert_all_fail(open_store("s3://bucket/x"), message)

    @pytest.mark.parametrize("answer", [Answer(503, "SlowDown"), Answer(429)])
    def test_overloaded(self, fake: FakeS3, impatient: None, answer: Answer):
        fake.always["PUT"] = answer
        with pytest.raises(StoreError, match=r"is overloaded .* later or with fewer workers"):
            open_store("s3://bucket").check_writable()

    @pytest.mark.parametrize("method", ["PUT", "GET"])
    def test_a_page_of_something_else(self, fake: FakeS3, impatient: None, method: str):
        fake.always = dict.fromkeys(("PUT", "GET"), Answer(200, body=HTML))
        call = {"PUT": "check", "GET": "list"}[method]
        with pytest.raises(StoreError, match="does not answer as an S3 server"):
            every_call(open_store("s3://bucket"))[call]()

    @pytest.mark.parametrize(
        "answer", [Answer(507, "XMinioStorageFull"), Answer(507), Answer(403, "QuotaExceeded")]
    )
    def test_full(self, fake: FakeS3, answer: Answer):
        fake.always["PUT"] = answer
        store = open_store("s3://bucket")
        for call in ("check", "put", "overwrite"):
            with pytest.raises(StoreFullError, match="the store is full or its quota is used up"):
                every_call(store)[call]()

    def test_a_bucket_that_turns_read_only(self, fake: FakeS3):
        store = open_store("s3://bucket")
        store.check_writable()
        fake.always["PUT"] = Answer(405, "MethodNotAllowed")
        with pytest.raises(StoreError, match="s3://bucket/job/key: the bucket is read-only"):
            store.put("job/key", b"")

    def test_what_the_server_says_of_credentials_is_not_repeated(self, fake: FakeS3):
        said = f"{WRITER.key_id} {TOKEN} {WRITER.secret}"
        for code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Odd"):
            fake.always = dict.fromkeys(("PUT", "GET", "DELETE"), Answer(403, code, said))
            fake.always["HEAD"] = Answer(403)
            assert_all_fail(open_store("s3://bucket"), "s3://bucket")

    def test_nothing_secret_is_logged(
        self, fake: FakeS3, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(logging.getLogger("botocore"), "level", logging.NOTSET)
        caplog.set_level(logging.DEBUG)
        open_store("s3://bucket").put("key", b"x")
        assert fake.objects
        for secret in (WRITER.secret, WRITER.key_id, TOKEN, "Signature"):
            assert secret not in caplog.text

    def test_slow_down_then_go_on(self, fake: FakeS3):
        fake.script["PUT"] = deque([Answer(503, "SlowDown")])
        store = open_store("s3://bucket")
        assert store.put("key", b"x", overwrite=True)
        assert fake.count("PUT") == 2
        assert store.get("key") == b"x"

    def test_a_check_gives_up_early(self, fake: FakeS3, monkeypatch: pytest.MonkeyPatch):
        store = open_store("s3://bucket")
        store.check_writable()
        fake.seen.clear()
        fake.always["PUT"] = Answer(500, "InternalError")
        with pytest.raises(StoreError, match="fails"):
            store.check_writable()
        assert fake.count("PUT") == 1 + s3.CHECK_RETRIES

    def test_a_torn_answer_is_read_again(self, fake: FakeS3):
        store = open_store("s3://bucket")
        store.put("key", b"whole", overwrite=True)
        fake.script["GET"] = deque([CUT, CUT])
        assert store.get("key") == b"whole"
        fake.script["GET"] = deque([CUT] * s3.READ_TRIES)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(s3, "PATIENCE_S", 0)
            with pytest.raises(StoreError, match=r"connection to .* broke"):
                store.get("key")

    @pytest.mark.parametrize("sizes", [{}, {"sized": False}], ids=["announced", "chunked"])
    def test_what_is_too_large_is_not_downloaded(self, fake: FakeS3, sizes):
        store = open_store("s3://bucket")
        store.put("key", b"whole", overwrite=True)
        fake.script["GET"] = deque([Answer(200, body=bytes(2**26), **sizes)])
        with pytest.raises(DamagedError, match=r"bucket/key has .*more than the 1,000 bytes"):
            store.get("key", limit_bytes=1000)
        assert fake.sent_bytes < 2**25
        assert store.get("key") == b"whole"

    def test_an_answer_in_chunks_is_read_to_its_end(self, fake: FakeS3):
        store = open_store("s3://bucket")
        fake.script["GET"] = deque([Answer(200, body=b"x" * 100_000, sized=False)])
        assert store.get("key", limit_bytes=100_000) == b"x" * 100_000

    def test_what_is_not_there(self, fake: FakeS3):
        store = open_store("s3://bucket")
        with pytest.raises(NotFoundError, match="s3://bucket/key: no such object"):
            store.get("key")
        assert store.head("key") is None
        fake.always["DELETE"] = Answer(404, "NoSuchKey")
        store.delete("key")

    def test_missing_without_the_right_to_list(self, fake: FakeS3):
        fake.always["GET"] = Answer(403, "AccessDenied")
        assert open_store("s3://bucket").head("key") is None


class TestFirstWriter:
    def test_an_answer_that_is_lost(self, fake: FakeS3):
        store = open_store("s3://bucket")
        store.check_writable()
        fake.script["PUT"] = deque([LOST])
        assert store.put("key", b"same") is True
        assert store.put("key", b"same") is False  # another put, though of the same bytes
        fake.script["PUT"] = deque([LOST])
        assert store.put("key", b"other") is False
        assert store.get("key") == b"same"

    def test_an_answer_that_is_lost_while_another_writes(self, fake: FakeS3):
        """The first try did not arrive, another worker writes the same bytes, then the second."""
        one, two = open_store("s3://bucket"), open_store("s3://bucket")
        one.check_writable()
        two.check_writable()
        assert two.put("key", b"same") is True
        fake.script["PUT"] = deque([Answer(500, "InternalError")])
        assert one.put("key", b"same") is False
        assert fake.script["PUT"] == deque()

    def test_conflicts_are_tried_again(self, fake: FakeS3, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(s3_first, "CONFLICT_PAUSES_S", (0, 0, 0))
        store = open_store("s3://bucket")
        store.check_writable()
        conflict = Answer(409, "ConditionalRequestConflict")
        fake.script["PUT"] = deque([conflict, conflict])
        assert store.put("key", b"x") is True
        fake.script["PUT"] = deque([conflict] * 3)
        with pytest.raises(StoreError, match="bucket/other: others keep writing or deleting it"):
            store.put("other", b"x")
        fake.script["PUT"] = deque([Answer(409, "InvalidBucketState")])
        with pytest.raises(StoreError, match=r"refuses to write \(409 InvalidBucketState\)"):
            store.put("other", b"x")

    def test_deleted_meanwhile(self, fake: FakeS3, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(s3_first, "CONFLICT_PAUSES_S", (0, 0))
        store = open_store("s3://bucket")
        store.check_writable()
        fake.script["PUT"] = deque([Answer(412, "PreconditionFailed")])
        assert store.put("key", b"x") is True

    @pytest.mark.parametrize("condition", ["ignored", "late", 400, 501])
    def test_a_server_without_conditions(
        self, fake: FakeS3, caplog: pytest.LogCaptureFixture, condition: str | int
    ):
        """It is found out, by the first put at the latest; then the store looks before it puts."""
        if isinstance(condition, int):
            fake.script["PUT"] = deque([None, Answer(condition, "NotImplemented")])
        else:
            fake.condition = condition
            fake.racers = threading.Barrier(s3_first.RACERS)
        store = open_store("s3://bucket")
        assert store.put("key", b"first") is True
        assert "does not honour If-None-Match" in caplog.text
        fake.condition = "ignored"
        assert store.put("key", b"second") is False
        assert store.get("key") == b"first"
        assert store.put("key", b"third", overwrite=True) is True
        assert list(fake.objects) == ["/bucket/key"]

    def test_the_server_is_asked_once(self, fake: FakeS3):
        store = open_store("s3://bucket")
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda n: store.put(f"key-{n}", b""), range(8)))
        probes = {path for method, path in fake.seen if method == "PUT" and "probe" in path}
        assert len(probes) == 1 + s3_first.RACES

    def test_without_the_right_to_delete(self, fake: FakeS3):
        fake.always["DELETE"] = Answer(403, "AccessDenied")
        store = open_store("s3://bucket")
        store.check_writable()
        assert store.put("key", b"x") is True
