"""What an image costs a worker besides rendering, as JSON: `python -m tests.bench.overhead`.

CPU time of one worker process (claims, plan, heart, PNG file of 64×64 pixels, PUT to SeaweedFS,
record, settling in Valkey), over its last thousand images; its engine gives them back at once. In
a job of a thousand images and at the end of one of a million, to see whether it grows. The CPU time
of the two servers is not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jobs.ledger import open_ledger
from jobs.ledger.base import Ledger
from jobs.ledger.types import NewJob
from tests.bench.control_plane import (
    MILLION,
    PATIENCE_S,
    servers,
    submitted,
    workers,
    write_manifest,
)
from tests.bench.wanted import Wanted, exit_code, judged

COUNTED = 1000
WANTED_MS = 10.0


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until_settled(ledger: Ledger, job_id: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not ledger.status(job_id).settled:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{job_id} did not end: {ledger.status(job_id)}")
        time.sleep(0.05)


def mark_done(ledger: Ledger, job_id: str, images: int) -> None:
    """The job's first images, as if they were rendered long ago."""
    status = ledger.status(job_id)
    same = NewJob(
        job_id=job_id,
        name=status.name,
        plan=status.plan,
        store=status.store,
        model=status.model,
        shard_ends=[*range(64, status.total, 64), status.total],
        evaluations=status.evaluations,
    )
    ledger.create(same, done=range(images))


def measure(folder: Path, images: int) -> dict[str, Any]:
    """Milliseconds of CPU for each of the last `COUNTED` images of a job of so many."""
    folder.mkdir()
    with servers(folder) as (valkey, store):
        ledger = open_ledger(valkey.url)
        job_id = submitted(write_manifest(folder, "overhead", images), store)["job"]
        if images > COUNTED:
            mark_done(ledger, job_id, images - COUNTED)
        with workers(folder, 1, "--seconds", "0"):
            deadline = time.monotonic() + PATIENCE_S
            while not (seen := ledger.workers()):
                if time.monotonic() > deadline:
                    raise TimeoutError((folder / "workers.log").read_text())
                time.sleep(0.01)
            before, began = cpu_s(seen[0].pid), time.monotonic()
            todo = images - ledger.status(job_id).done
            wait_until_settled(ledger, job_id)
            used_s, seconds = cpu_s(seen[0].pid) - before, time.monotonic() - began
        if failed := ledger.status(job_id).failed:
            raise RuntimeError(f"{failed} images failed:\n{(folder / 'workers.log').read_text()}")
    return {
        "counted": todo,
        "cpu_ms_per_image": round(1000 * used_s / todo, 2),
        "images_per_s": round(todo / seconds, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", type=int, default=MILLION, help="images of the large job")
    parser.add_argument("--check", action="store_true", help="exit code 1 if not as wanted")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sdbatch-bench-") as name:
        report = {
            f"job_of_{images}": measure(Path(name) / str(images), images)
            for images in (COUNTED, args.large)
        }
    wanted = [Wanted(f"{name}.cpu_ms_per_image", most=WANTED_MS) for name in report]
    judgement = judged(report, wanted)
    print(json.dumps(judgement, indent=2))
    return exit_code(judgement, check=args.check)


if __name__ == "__main__":
    sys.exit(main())
