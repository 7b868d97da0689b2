"""A cluster on loopback for tests: a real Valkey, real worker processes, a store."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from jobs.errors import LedgerError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.records import read_records
from jobs.ledger import open_ledger
from jobs.ledger.types import JobState, JobStatus
from jobs.manifest.load import load_manifest
from jobs.storage import LocalStore, Store
from tests.commands import run_command
from tests.forked import ForkedProcess
from tests.servers import Valkey, wait_for

LEASE_S = 3.0
WORKER = ("jobs.cli", "worker")


class Cluster:
    """model: a checkpoint, called odd in the workers' model list.

    store: the folder `out` unless another is given with its address. environ: more variables for
    all processes. entry: the module that a worker process runs, with its arguments.
    """

    def __init__(
        self,
        folder: Path,
        valkey: Valkey,
        model: Path,
        *,
        store: Store | None = None,
        address: str | None = None,
        environ: Mapping[str, str] | None = None,
        entry: tuple[str, ...] = WORKER,
    ) -> None:
        self.folder = folder
        self.store = LocalStore(folder / "out") if store is None else store
        self._address = str(folder / "out") if address is None else address
        self._entry = entry
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
            **(environ or {}),
        }
        self.ledger = open_ledger(valkey.url, lease_s=LEASE_S)
        self.workers: list[ForkedProcess | subprocess.Popen[bytes]] = []

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command(arguments, self.environ)

    def submit(self, manifest: Path, *options: str) -> None:
        done = self.command("submit", str(manifest), "--store", self._address, *options)
        assert done.returncode == 0, done.stderr

    def start_worker(self, **environ: str) -> ForkedProcess | subprocess.Popen[bytes]:
        path = self.folder / f"worker-{len(self.workers)}.log"
        worker: ForkedProcess | subprocess.Popen[bytes]
        if self._entry == WORKER:
            worker = ForkedProcess(self._entry, {**self.environ, **environ}, path)
        else:  # it changes what the libraries find when they are imported, such as clocks
            with path.open("wb") as log:
                worker = subprocess.Popen(
                    [sys.executable, "-m", *self._entry],
                    env={**self.environ, **environ},
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
        return {r["path"]: r["sha256"] for r in read_records(JobFolder(self.store, JobKeys(job)))}

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGCONT)
                worker.kill()
            worker.wait()


def make_model(folder: Path) -> Path:
    """A small model with random weights."""
    from sd_core.weights.export import save_single_file
    from tests.sd_core.small import ODD, small_model

    path = folder / "odd.safetensors"
    save_single_file(small_model(ODD), path)
    return path


def undisturbed(manifest: Path, model: Path | Mapping[str, Path], folder: Path) -> dict[str, str]:
    """Image path -> sha256 after a run in one process, without a service.

    model: a checkpoint, or those of several models by their names.
    """
    from tests.worker.test_run import Recorder
    from worker.checkpoint.load import ModelChoice
    from worker.run import run_job

    store, read = LocalStore(folder), load_manifest(manifest)
    paths = model if isinstance(model, Mapping) else {"odd": model}
    cache = Path(f"{folder}-cache")
    summary = run_job(
        read,
        [
            ModelChoice(
                part.name, str(paths[part.name]), dtype="float32", device="cpu", cache=cache
            )
            for part in read.models
        ],
        store,
        observe=lambda cost: contextlib.nullcontext(Recorder()),
        status=lambda text: contextlib.nullcontext(),
        stop=threading.Event(),
    )
    return {
        record["path"]: record["sha256"]
        for record in read_records(JobFolder(store, JobKeys(summary.job)))
    }
