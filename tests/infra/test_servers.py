"""The commands of Compose's servers, run: the same releases, from packages, on loopback."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from redis.exceptions import AuthenticationError, ConnectionError

from jobs.storage import open_store
from tests.infra.files import INFRA, compose, filled_in, services
from tests.servers import client_at, free_port, valkey_binary, wait_for
from tests.servers_s3 import _free_ports, _weed

MAKE_BUCKET = INFRA / "docker/make_bucket.py"


@pytest.fixture
def started():
    """Starts programs that end with the test."""
    processes = []

    def start(command, **options):
        process = subprocess.Popen(command, start_new_session=True, **options)
        processes.append(process)
        return process

    yield start
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_valkey_starts_as_compose_starts_it(started, tmp_path):
    service = services()["valkey"]
    shell, flag, script = service["command"]
    port = free_port()
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "valkey-server").symlink_to(valkey_binary())
    assert "valkey-server - --dir /data " in script
    script = script.replace(" --dir /data ", f" --dir {data} --bind 127.0.0.1 --port {port} ")
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **service["environment"]}
    with (tmp_path / "log").open("wb") as log:
        server = started([shell, flag, script], env=environ, stdout=log, stderr=log)
    password = service["environment"]["VALKEY_PASSWORD"]
    with client_at(port, password=password) as client:
        wait_for(lambda: _pings(client), f"the server; see {tmp_path / 'log'}")
        asked = client.config_get("*")
        client.set("a", "1")
    given = {name: asked[name] for name in ("appendonly", "appendfsync", "save")}
    assert given == {"appendonly": "yes", "appendfsync": "everysec", "save": ""}
    assert (asked["maxmemory"], asked["maxmemory-policy"]) == (str(2**30), "noeviction")
    assert asked["dir"] == str(data)
    assert (data / "appendonlydir").is_dir()
    for line in re.findall(r"valkey-cli ([^'\n]+)'", (INFRA / "RUNBOOK.md").read_text()):
        with client_at(port, password=password) as client:
            assert client.execute_command(*shlex.split(line)), line
    with client_at(port, password="NEW") as client, client_at(port, password=password) as old:
        assert client.config_get("maxmemory") == {"maxmemory": str(2 * 2**30)}
        assert old.ping()  # until the runbook's last step
        assert client.acl_setuser("default", passwords=[f"-{password}"])
    with client_at(port, password=password) as old, pytest.raises(AuthenticationError):
        old.ping()
    command_line = Path(f"/proc/{server.pid}/cmdline").read_bytes()
    assert b"valkey-server" in command_line  # the shell has become it: signals reach it
    assert password.encode() not in command_line
    with client_at(port) as stranger, pytest.raises(AuthenticationError):
        stranger.ping()


def _pings(client):
    try:
        return client.ping()
    except AuthenticationError:
        raise
    except ConnectionError:  # not there yet
        return False


def test_flags_of_the_store_exist():
    said = subprocess.run([_weed(), "server", "-h"], capture_output=True, text=True, check=False)
    known = set(re.findall(r"^  -([\w.]+)", said.stdout + said.stderr, re.MULTILINE))
    assert {"dir", "s3.port"} <= known
    command = services()["seaweedfs"]["command"]
    flags = command[command.index("server") + 1 :]
    assert {flag.lstrip("-").partition("=")[0] for flag in flags} <= known


@pytest.fixture
def store(started, aws, tmp_path):
    """The store as Compose starts it, but on free ports, and known as 127.0.0.1; its endpoint."""
    service = services()["seaweedfs"]
    ports = _free_ports()
    (tmp_path / "data").mkdir()
    command = [
        flag.replace("=/data", f"={tmp_path}/data").replace("-ip=seaweedfs", "-ip=127.0.0.1")
        for flag in service["command"]
        if not flag.startswith("-s3.port=")
    ]
    for name, port in ports.items():
        part, _, kind = name.partition(".")
        command.append(f"-{part}.port{kind and '.grpc'}={port}")
    command += ["-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock"]
    environ = {**os.environ, **service["environment"], "HOME": str(tmp_path)}
    with (tmp_path / "log").open("wb") as log:
        started([_weed(), *command], cwd=tmp_path, env=environ, stdout=log, stderr=log)
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    for name, value in services()["client"]["environment"].items():
        if name.startswith("AWS_"):
            aws.setenv(name, value)
    aws.setenv("AWS_ENDPOINT_URL", endpoint)
    yield endpoint
    for name, port in ports.items():
        part, _, kind = name.partition(".")
        if kind:  # wherever it is told to put its other files
            Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock").unlink(missing_ok=True)


def make_bucket(*, key: str | None = None) -> subprocess.CompletedProcess[str]:
    *_, name = services()["bucket"]["entrypoint"]
    environ = dict(os.environ) if key is None else {**os.environ, "AWS_SECRET_ACCESS_KEY": key}
    command = [sys.executable, str(MAKE_BUCKET), name]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def test_the_store_starts_as_compose_starts_it(store):
    path = services()["seaweedfs"]["healthcheck"]["test"][-1].partition(":8333")[2]

    def healthy():
        try:
            with urllib.request.urlopen(store + path) as answer:
                return answer.status == 200
        except OSError:
            return False

    wait_for(healthy, "the store")
    # At once, as Compose does: it may take buckets only a while later.
    first, again = make_bucket(), make_bucket()
    assert (first.returncode, first.stderr) == (0, "")
    assert (again.returncode, again.stderr) == (0, "")
    jobs = open_store(services()["client"]["environment"]["SDBATCH_STORE"])
    jobs.check_writable()
    assert jobs.put("shapes/a", b"1", overwrite=False)
    assert not jobs.put("shapes/a", b"2", overwrite=False)
    wrong = make_bucket(key="wrong")
    assert wrong.returncode == 1
    assert wrong.stderr == "bucket sdbatch: SignatureDoesNotMatch\n"
    stranger = boto3.client("s3", config=Config(signature_version=UNSIGNED))
    with pytest.raises(ClientError, match="AccessDenied"):
        stranger.list_objects_v2(Bucket="sdbatch")


def test_a_password_of_the_example_is_fit_for_urls():
    """Hex digits, as it advises to make them."""
    (advice,) = re.findall(r"openssl rand -hex (\d+)", (INFRA / "env.example").read_text())
    made = os.urandom(int(advice)).hex()
    found = compose(filled_in() | {"VALKEY_PASSWORD": made})["services"]["worker"]["environment"]
    assert json.dumps(made)[1:-1] in found["SDBATCH_REDIS"]
