"""A cluster on loopback for tests: a real Valkey, real worker processes, a store in a folder."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from jobs.errors import LedgerError
from jobs.ledger import open_ledger
from jobs.ledger.base import JobState, JobStatus
from jobs.records import read_records
from jobs.storage import JobKeys, LocalStore
from tests.servers import Valkey, wait_for

LEASE_S = 3.0


class Cluster:
    """model: a checkpoint, called odd in the workers' model list."""

    def __init__(self, folder: Path, valkey: Valkey, model: Path) -> None:
        self.folder = folder
        self.store = LocalStore(folder / "out")
        models = folder / "models.yaml"
        models.write_text(f"odd: {model}\n")
        self.environ = {
            **os.environ,
            "SDBATCH_REDIS": valkey.url,
            "SDBATCH_MODELS": str(models),
            "SDBATCH_MODEL": "odd",
            "SDBATCH_DTYPE": "float32",
            "SDBATCH_DEVICE": "cpu",
            "SDBATCH_LEASE_S": str(LEASE_S),
        }
        self.ledger = open_ledger(valkey.url, lease_s=LEASE_S)
        self.workers: list[subprocess.Popen[bytes]] = []

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "jobs.cli", *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
        )

    def submit(self, manifest: Path, *options: str) -> None:
        done = self.command("submit", str(manifest), "--store", str(self.folder / "out"), *options)
        assert done.returncode == 0, done.stderr

    def start_worker(self) -> subprocess.Popen[bytes]:
        log = (self.folder / f"worker-{len(self.workers)}.log").open("wb")
        with log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "jobs.cli", "worker"],
                env=self.environ,
                stdout=log,
                stderr=log,
            )
        self.workers.append(worker)
        return worker

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("worker-*.log")))

    def wait_for_images(self, count: int) -> None:
        folder = self.folder / "out"
        wait_for(
            lambda: len(list(folder.glob("*/images/*.png"))) >= count,
            f"{count} images\n{self.logs()}",
        )

    def wait_for_workers(self, count: int) -> None:
        wait_for(lambda: len(self.ledger.workers()) >= count, f"{count} workers")

    def wait_until_done(self) -> JobStatus:
        def done() -> JobStatus | None:
            try:
                (job,) = self.ledger.jobs()
            except LedgerError:  # a server that is being restarted
                return None
            return job if job.state is JobState.DONE else None

        return wait_for(done, "the end of the job")

    def digests(self, job: str) -> dict[str, str]:
        """Image path -> sha256 of what is really in the store."""
        keys = JobKeys(job)
        return {
            keys.path(info.key): hashlib.sha256(self.store.get(info.key)).hexdigest()
            for info in self.store.list(keys.images_prefix)
        }

    def records(self, job: str) -> dict[str, str]:
        return {r["path"]: r["sha256"] for r in read_records(self.store, JobKeys(job))}

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGCONT)
                worker.kill()
            worker.wait()
