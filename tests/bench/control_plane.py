"""Speed of the control plane, as JSON on standard output: `python -m tests.bench.control_plane`.

Everything is real but the rendering: Valkey with an append-only file, SeaweedFS, Celery workers.

million    a job of a million images: submitted, submitted again, and into a wiped ledger; what a
           status costs, beside that of a job of a thousand images
settling   workers that settle each image at once: images a second that ledger and queue carry
waiting    32 workers whose engine only waits: their share of the ideal throughput

With --check the exit code is 1 if a figure is not as wanted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from jobs.folder.layout import JobKeys
from jobs.ledger import open_ledger
from jobs.ledger.base import Ledger
from jobs.ledger.types import JobState, JobStatus
from jobs.storage.filesystem import LocalStore
from tests.bench.wanted import Wanted, exit_code, judged
from tests.servers import Valkey
from tests.servers_s3 import BUCKET, WRITER, S3Server

MILLION = 1_000_000
PATIENCE_S = 1200.0
MANIFEST = """\
version: 1
name: NAME
model: waiting
defaults: {width: 64, height: 64, steps: 10, sampler: ddim}
prompts:
  - prompt: a picture
    seeds: {start: 0, count: COUNT}
"""


def write_manifest(folder: Path, name: str, images: int) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(MANIFEST.replace("NAME", name).replace("COUNT", str(images)))
    return path


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[tuple[Valkey, str]]:
    """A Valkey and the address of an empty store on SeaweedFS; the environment leads there."""
    for part in ("valkey", "s3"):
        (folder / part).mkdir()
    valkey = Valkey(folder / "valkey", "--appendonly", "yes", "--appendfsync", "everysec")
    s3 = S3Server(folder / "s3")
    try:
        s3.start()
        aws = {
            "AWS_ENDPOINT_URL": s3.endpoint,
            "AWS_ACCESS_KEY_ID": WRITER.key_id,
            "AWS_SECRET_ACCESS_KEY": WRITER.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "SDBATCH_REDIS": valkey.url,
        }
        with mock.patch.dict(os.environ, aws):
            yield valkey, f"s3://{BUCKET}/bench"
    finally:
        s3.stop()
        valkey.kill()


# A million images


def submitted(manifest: Path, store: str) -> dict[str, Any]:
    """Submits in a process of its own; its seconds, peak memory and answer."""
    started = time.monotonic()
    command = [sys.executable, "-m", "tests.bench.control_plane", "--submit", str(manifest), store]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *answer, peak_kb = done.stdout.splitlines()
    return {
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_mib": round(int(peak_kb) / 1024),
        **json.loads("".join(answer)),
    }


def submit_here(manifest: str, store: str) -> int:
    """What `submitted` runs: the command, then its peak memory in kB on a line."""
    from jobs.cli.root import main

    code = main(["submit", manifest, "--store", store, "--json"])
    # Not getrusage: its peak is that of the process that started this one, if that was larger.
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    print(int(status["VmHWM"].split()[0]))
    return code


def commands_of(valkey: Valkey, question: Callable[[], object]) -> int:
    """Commands that the server ran for a question, those of scripts included."""

    def count() -> int:
        with valkey.client() as client:
            return sum(
                stats["calls"]
                for name, stats in client.info("commandstats").items()
                if not name.startswith(("cmdstat_info", "cmdstat_client", "cmdstat_hello"))
            )

    before = count()
    question()
    return count() - before


def million(folder: Path, images: int = MILLION) -> dict[str, Any]:
    """Figures of a job of so many images; `status_commands` beside those of a small job."""
    with servers(folder) as (valkey, store):
        large, small = write_manifest(folder, "large", images), write_manifest(folder, "small", 10)
        ledger = open_ledger(valkey.url)
        ledger.ping()
        report: dict[str, Any] = {"new": submitted(large, store), "small": submitted(small, store)}
        with valkey.client() as client:
            memory = {
                key.decode(): client.memory_usage(key, samples=0) or 0
                for key in client.scan_iter(count=1000)
            }
        report["redis_mib"] = round(sum(memory.values()) / 2**20, 2)
        report["again"] = submitted(large, store)
        ledger.ping()  # a connection that was idle for long is checked first
        report["status_commands"] = {
            name: commands_of(valkey, lambda name=name: ledger.status(report[name]["job"]))
            for name in ("new", "small")
        }
        timed = [_seconds(lambda: ledger.status(report["new"]["job"])) for _ in range(100)]
        report["status_ms"] = round(1000 * sorted(timed)[50], 2)
        with valkey.client() as client:
            client.flushall()
        report["into_a_wiped_ledger"] = submitted(large, store)
        return report


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


# Workers


@contextlib.contextmanager
def workers(folder: Path, processes: int, *options: str) -> Iterator[None]:
    """Worker processes that wait instead of rendering; all of them ended afterwards."""
    models = folder / "models.yaml"
    models.write_text("waiting: none\n")
    environ = {
        **os.environ,
        "SDBATCH_MODELS": str(models),
        "SDBATCH_MODEL": "waiting",
        "SDBATCH_DEVICE": "cpu",
        "SDBATCH_DTYPE": "float32",
    }
    command = [sys.executable, "-m", "tests.integration.waiting", *options]
    with (folder / "workers.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--processes", str(processes)], env=environ, stdout=log, stderr=log
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def _follow(ledger: Ledger, job_id: str) -> list[tuple[float, JobStatus]]:
    """Time and status, ten times a second, until the job's last image is settled."""
    seen: list[tuple[float, JobStatus]] = []
    deadline = time.monotonic() + PATIENCE_S
    while not seen or not seen[-1][1].settled:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{job_id} did not end: {seen[-1][1]}")
        seen.append((time.monotonic(), ledger.status(job_id)))
        time.sleep(0.1)
    return seen


def _wait_for_workers(ledger: Ledger, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(ledger.workers()) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(ledger.workers())} of {count} workers came up")
        time.sleep(0.1)


def settling(folder: Path, processes: int = 8, images: int = 100_000) -> dict[str, Any]:
    """Images a second when rendering and storing take no time: what ledger and queue carry."""
    (folder / "valkey").mkdir()
    valkey = Valkey(folder / "valkey", "--appendonly", "yes", "--appendfsync", "everysec")
    try:
        with mock.patch.dict(os.environ, {"SDBATCH_REDIS": valkey.url}):
            ledger = open_ledger(valkey.url)
            with workers(folder, processes, "--settle-only"):
                _wait_for_workers(ledger, processes)
                job = submitted(write_manifest(folder, "settling", images), str(folder / "out"))
                seen = _follow(ledger, job["job"])
        begun = next(at for at, status in seen if status.done or status.leased)
        seconds = seen[-1][0] - begun
        return {
            "workers": processes,
            "images": images,
            "seconds": round(seconds, 1),
            "images_per_s": round(images / seconds),
        }
    finally:
        valkey.kill()


def waiting(
    folder: Path, processes: int = 32, images: int = 8192, image_s: float = 0.5
) -> dict[str, Any]:
    """Throughput of workers that render an image in `image_s`, one at a time, against
    `processes / image_s`: from the first claim until the last image is settled.
    """
    (folder / "valkey").mkdir()
    valkey = Valkey(folder / "valkey", "--appendonly", "yes", "--appendfsync", "everysec")
    store = LocalStore(folder / "out")
    try:
        with mock.patch.dict(os.environ, {"SDBATCH_REDIS": valkey.url}):
            ledger = open_ledger(valkey.url)
            with workers(folder, processes, "--seconds", str(image_s)):
                _wait_for_workers(ledger, processes)
                job = submitted(write_manifest(folder, "waiting", images), str(store.root))
                seen = _follow(ledger, job["job"])
                ended = _until_done(ledger, job["job"])
            found = sum(1 for _ in store.list(JobKeys(job["job"]).images_prefix))
        begun = next(at for at, status in seen if status.leased)
        seconds = seen[-1][0] - begun
        ideal = processes / image_s
        return {
            "workers": processes,
            "images": images,
            "image_s": image_s,
            "in_store": found,
            "state": str(ended.state),
            "seconds": round(seconds, 1),
            "images_per_s": round(images / seconds, 2),
            "ideal_images_per_s": ideal,
            "share_of_ideal": round(images / seconds / ideal, 4),
        }
    finally:
        valkey.kill()


def _until_done(ledger: Ledger, job_id: str) -> JobStatus:
    deadline = time.monotonic() + PATIENCE_S
    while (status := ledger.status(job_id)).state is not JobState.DONE:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{job_id} was not finished")
        time.sleep(0.1)
    return status


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "million": million,
    "settling": settling,
    "waiting": waiting,
}

WANTED = {
    "million": (
        Wanted("new.seconds", most=300),
        Wanted("new.peak_memory_mib", most=400),
        Wanted("redis_mib", most=16),
    ),
    "settling": (Wanted("images_per_s", least=500),),
    "waiting": (Wanted("share_of_ideal", least=0.95),),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all of them")
    parser.add_argument("--check", action="store_true", help="fail if a wanted figure is missed")
    parser.add_argument("--submit", nargs=2, metavar=("MANIFEST", "STORE"), help="for itself")
    args = parser.parse_args()
    if args.submit:
        return submit_here(*args.submit)
    report = {}
    for part in args.part or PARTS:
        with tempfile.TemporaryDirectory(prefix="sdbatch-bench-") as folder:
            report[part] = judged(PARTS[part](Path(folder)), WANTED[part])
    print(json.dumps(report, indent=2))
    return exit_code(report, check=args.check)


if __name__ == "__main__":
    sys.exit(main())
