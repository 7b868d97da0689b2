"""A job in a cluster where everything dies: workers, the ledger's server, the store, connections.

    python -m tests.integration.chaos --seeds 0:20 --log series.jsonl

runs once for each seed and writes a line of JSON for each run. A run is a job of 300 images on
three workers, a Valkey with an append-only file and a SeaweedFS, both behind wires that can be cut.
What happens, and in which order, the seed decides; dead workers are replaced, as a supervisor does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

from jobs.folder.layout import JobKeys
from jobs.ledger.types import JobState, JobStatus
from jobs.manifest.load import load_manifest
from jobs.plan.cost import evaluations_of
from tests.integration import witness
from tests.integration.cluster import make_model, undisturbed
from tests.integration.disorder import IMAGES, Disorder, write_manifest
from tests.servers_s3 import WRITER


class Check:
    """What must be so after a run. problems: what is not, one sentence each."""

    def __init__(self, disorder: Disorder) -> None:
        self.disorder = disorder
        self.cluster = disorder.cluster
        self.problems = disorder.problems

    def figures(self, calm: dict[str, str]) -> dict[str, Any]:
        """Figures of the run; what is not as it should be goes to `problems`."""
        (status,) = self.cluster.ledger.jobs()
        images = self.cluster.digests(status.job_id)
        records = self.cluster.records(status.job_id)
        whole = witness.total(self.disorder.files.values())
        needed = sum(map(evaluations_of, load_manifest(self.disorder.manifest).tasks()))
        wasted = sum(whole.starts.values()) - IMAGES
        damaged = self.disorder.damaged
        written = self.disorder.s3_wire.written.items()
        # One that was damaged is rendered and written again.
        twice = [path for path, n in written if n > 1 + sum(map(path.endswith, damaged))]
        self._expect("state", status.state, JobState.DONE)
        self._expect("done and failed", (status.done, status.failed), (IMAGES, 0))
        self._expect("images missing", sorted(calm.keys() - images.keys()), [])
        self._expect("images too many", sorted(images.keys() - calm.keys()), [])
        self._expect("images that differ", sorted(images.items() - calm.items()), [])
        self._expect("records that differ", sorted(records.items() ^ images.items()), [])
        self._expect("images that the server wrote twice", twice, [])
        self._expect("images stored that nobody began", sorted(whole.stored - whole.starts), [])
        if status.state is JobState.DONE:
            done = json.loads(self.cluster.store.get(JobKeys(status.job_id).done))
            self._expect("done.json", (done["images"], done["failed"]), (IMAGES, 0))
        self._check_ledger(status)
        in_flight = self.disorder.in_flight_at_kills
        again = sum("/images/" in key for key in damaged)
        if wasted > in_flight + again:
            self.problems.append(
                f"{wasted} renders were begun in vain, {in_flight} were in flight at the kills"
            )
        logs = self.cluster.logs()
        return {
            "fsync": self.disorder.fsync,
            "images": len(images),
            "processes": len(self.cluster.workers),
            "gave_up": self.disorder.gave_up,
            "wasted_renders": wasted,
            "in_flight_at_kills": in_flight,
            "wasted_evaluations": whole.steps - needed,
            "needed_evaluations": needed,
            "leases_expired": logs.count("is gone (death"),
            "messages_lost": len(re.findall("messages? (was|were) lost", logs)),
            "tracebacks": logs.count("Traceback"),
            "puts_met": dict(self.disorder.s3_wire.met),
            "mended": self.disorder.mended,
            "events": self.disorder.happened,
        }

    def _check_ledger(self, status: JobStatus) -> None:
        with self.disorder.valkey.client() as client:
            bits = client.bitcount(f"sdbatch:done:{status.job_id}")
            leases = client.zrange("sdbatch:leases", 0, -1)
            failed = client.bitcount(f"sdbatch:failed:{status.job_id}")
        self._expect("bits done and failed", (bits, failed), (IMAGES, 0))
        self._expect("leases", leases, [])
        self._expect(
            "shards leased, published, waiting",
            (status.leased, status.published, status.waiting),
            (0, 0, 0),
        )
        self._expect("pending", self.cluster.ledger.pending(status.job_id, 0, IMAGES), [])

    def _expect(self, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            self.problems.append(f"{what}: {str(found)[:500]}, not {str(wanted)[:100]}")


def run(seed: int, folder: Path, model: Path, calm: dict[str, str]) -> dict[str, Any]:
    """One run; its figures, with `problems` empty if all is as it should be.

    folder: new, for servers' data and all logs. calm: what `undisturbed` gave.
    """
    started = time.monotonic()
    aws = {
        "AWS_ACCESS_KEY_ID": WRITER.key_id,
        "AWS_SECRET_ACCESS_KEY": WRITER.secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(folder / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with mock.patch.dict(os.environ, aws):
        disorder = Disorder(seed, folder, model)
        try:
            disorder.go()
            figures = Check(disorder).figures(calm)
        finally:
            disorder.close()
    seconds = round(time.monotonic() - started, 1)
    return {"seed": seed, "seconds": seconds, "problems": disorder.problems, **figures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0:20", help="FIRST:END, END not included")
    parser.add_argument("--log", type=Path, required=True, help="JSON lines are added to it")
    parser.add_argument("--keep", type=Path, help="folder for the logs of runs with problems")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    bad = 0
    with tempfile.TemporaryDirectory(prefix="sdbatch-chaos-") as name:
        folder = Path(name)
        model = make_model(folder)
        calm = undisturbed(write_manifest(folder), model, folder / "calm")
        for seed in range(*map(int, args.seeds.split(":"))):
            try:
                figures = run(seed, folder / str(seed), model, calm)
            except Exception:
                figures = {"seed": seed, "problems": [traceback.format_exc()]}
            if figures["problems"]:
                bad += 1
                if args.keep is not None:
                    shutil.copytree(
                        folder / str(seed),
                        args.keep / str(seed),
                        ignore=shutil.ignore_patterns("*.sock"),
                        dirs_exist_ok=True,
                    )
            with args.log.open("a") as log:
                log.write(json.dumps(figures) + "\n")
            shutil.rmtree(folder / str(seed), ignore_errors=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
