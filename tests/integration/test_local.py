"""`sdbatch local` as a person runs it: real servers and workers, from one command."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.errors import ExitCode, InputError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.records import read_records
from jobs.local.address import STORE, LocalCluster, cluster_file, running_cluster
from jobs.local.lock import locked
from jobs.local.seaweed import endpoint, remove_sockets, seaweed, seaweed_ready, weed_program
from jobs.local.state import SEAWEED_PORTS, load_state
from jobs.local.valkey import valkey_program
from jobs.storage import LocalStore, open_store
from jobs.storage.s3.address import S3Access
from tests.commands import run_command
from tests.jobs.manifests import write
from tests.servers import PATIENCE_S, missing, wait_for

IMAGES = 6
MANIFEST = """\
version: 1
name: shapes
model: demo
defaults: {width: 128, height: 128, steps: 4}
prompts:
  - prompt: a red circle on a blue background
    seeds: {start: 0, count: 5}
  - a green star on a white background
"""


class Local:
    """The command over one folder, and other commands that know nothing but the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        leading = ("AWS_", "SDBATCH_")
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith(leading)}
        # Credentials for somewhere else, as many people have them.
        self.environ |= {"SDBATCH_LOCAL": str(folder), "AWS_ACCESS_KEY_ID": "OTHER"}
        self.environ |= {"AWS_SECRET_ACCESS_KEY": "other", "AWS_SESSION_TOKEN": "other"}
        self.process: subprocess.Popen[str] | None = None
        self.pids: set[int] = set()

    def start(self, *options: str) -> dict[str, object]:
        """Returns what it says when all workers are ready."""
        self.launch(*options)
        assert self.process is not None
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said, self.logs()
        self.pids = descendants(self.process.pid)
        return json.loads(said)

    def launch(self, *options: str) -> None:
        """Returns at once."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", "local", "--json", *options],
            env=self.environ,
            stdout=subprocess.PIPE,
            text=True,
        )

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command(arguments, self.environ)

    def answer(self, *arguments: str) -> dict[str, object]:
        done = self.command(*arguments, "--json")
        assert done.returncode == 0, f"{done.stdout}{done.stderr}{self.logs()}"
        return json.loads(done.stdout)

    def cluster(self) -> LocalCluster:
        found = running_cluster(self.environ)
        assert found is not None
        return found

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        assert self.process is not None
        with self.process:
            return self.process.wait(timeout=2 * PATIENCE_S)

    def logs(self) -> str:
        return "\n".join(p.read_text() for p in sorted(self.folder.glob("logs/*.log")))

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()  # its parts end with it
            self.wait()


def descendants(pid: int) -> set[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in children}.union(*(descendants(int(c)) for c in children))


def alive(pids: set[int]) -> set[int]:
    """Those that still run; a zombie does not."""
    running = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            running.add(pid)
    return running


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    try:
        valkey_program()
        weed_program()
    except InputError as error:
        missing(str(error))
    if not Path("/proc/self/task").exists():
        missing("/proc")
    running = Local(tmp_path / "kept here")
    yield running
    running.close()


def digests(folder: Path) -> dict[str, str]:
    """Image path -> sha256 of what is there."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob("images/*.png")
    }


def test_a_cluster_in_one_command(local, tmp_path):
    manifest = str(write(tmp_path, MANIFEST, "shapes.yaml"))
    ready = local.start("--workers", "2")
    assert (ready["workers"], ready["store"]) == (2, "s3://sdbatch/jobs")
    assert len(local.answer("workers")["workers"]) == 2
    assert len(local.pids) == 4
    assert cluster_file(local.folder).stat().st_mode & 0o777 == 0o600
    assert local.folder.stat().st_mode & 0o777 == 0o700
    cluster = local.cluster()
    secrets = (cluster.secret, cluster.redis)
    assert not any(secret in json.dumps(ready) for secret in secrets)

    second = local.command("local")
    assert second.returncode == ExitCode.BAD_INPUT
    assert "runs in" in second.stderr
    assert local.process.poll() is None

    submitted = local.answer("submit", manifest)
    job = submitted["job"]
    assert local.answer("watch", job)["done"] == IMAGES
    collected = local.answer("collect", job, str(tmp_path / "mine"))
    assert (collected["copied"], collected["damaged"]) == (IMAGES, [])
    calm = tmp_path / "calm"
    assert local.answer("run", manifest, "--store", str(calm))["job"] == job
    assert digests(tmp_path / "mine" / job) == digests(calm / job)
    store = open_store(cluster.store, access=cluster.access(cluster.store))
    recorded = {r["path"]: r["sha256"] for r in read_records(JobFolder(store, JobKeys(job)))}
    undisturbed = {
        r["path"]: r["sha256"] for r in read_records(JobFolder(LocalStore(calm), JobKeys(job)))
    }
    assert recorded == undisturbed
    assert len(recorded) == IMAGES

    assert local.stop() == ExitCode.DONE
    assert alive(local.pids) == set()
    assert not cluster_file(local.folder).exists()
    assert running_cluster(local.environ) is None
    assert not any(secret in local.logs() for secret in (cluster.secret, cluster.redis[9:41]))
    ports = json.loads((local.folder / "state.json").read_text())["ports"]
    sockets = [
        Path(f"/tmp/seaweedfs-{name[:-10]}-grpc-{ports[name]}.sock")
        for name in SEAWEED_PORTS
        if name.endswith(".grpc")
    ]
    assert len(sockets) == 4
    assert not any(socket.exists() for socket in sockets)

    local.launch()
    wait_for(cluster_file(local.folder).exists, "the second start")
    local.pids = descendants(local.process.pid)
    again = local.cluster()
    assert (again.redis, again.endpoint) == (cluster.redis, cluster.endpoint)
    (kept,) = local.answer("jobs")["jobs"]
    assert (kept["job"], kept["state"], kept["done"]) == (job, "done", IMAGES)
    assert local.answer("collect", job, str(tmp_path / "mine again"))["copied"] == IMAGES
    assert digests(tmp_path / "mine again" / job) == digests(calm / job)
    assert local.stop() == ExitCode.DONE
    assert alive(local.pids) == set()


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_a_server_is_not(local):
    local.start()
    (first,) = local.answer("workers")["workers"]
    os.kill(first["pid"], signal.SIGKILL)

    def another() -> bool:
        return any(worker["pid"] != first["pid"] for worker in local.answer("workers")["workers"])

    wait_for(another, "another worker")
    local.pids |= descendants(local.process.pid)
    assert len(local.pids) == 4
    (weed,) = (pid for pid in alive(local.pids) if b"weed" in command_line(pid))
    os.kill(weed, signal.SIGKILL)
    assert local.wait() == ExitCode.STORE
    assert alive(local.pids) == set()
    assert running_cluster(local.environ) is None


@pytest.mark.slow
def test_killed_outright_it_takes_its_parts_along(local):
    local.start()
    assert not any(
        secret.encode() in command_line(pid)
        for pid in local.pids
        for secret in (local.cluster().secret, local.cluster().redis[9:41])
    )
    local.process.kill()
    assert local.wait() == -signal.SIGKILL
    wait_for(lambda: not alive(local.pids), "their end")
    assert running_cluster(local.environ) is None
    local.start()
    assert local.stop() == ExitCode.DONE


def test_objects_survive_the_kill_that_ends_seaweedfs(tmp_path, local):
    state, logs = load_state(tmp_path), tmp_path / "logs"
    logs.mkdir()
    objects = {f"{n % 5}/{n}": os.urandom(20_000 + n) for n in range(100)}
    store = open_store(STORE, access=S3Access(endpoint(state), state.key_id, state.secret))
    with locked(tmp_path) as held:
        server = seaweed(tmp_path, logs, state, os.environ, held=held)
        try:
            server.start()
            wait_for(lambda: seaweed_ready(state), "SeaweedFS")
            for key, data in objects.items():
                store.put(key, data)
            server.kill()  # at once: the last object was acknowledged a moment ago
            server.start()
            wait_for(lambda: seaweed_ready(state), "SeaweedFS")
            assert {info.key for info in store.list("")} == set(objects)
            assert {key: store.get(key) for key in objects} == objects
        finally:
            server.kill()
            remove_sockets(state)
