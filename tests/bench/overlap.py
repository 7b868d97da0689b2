"""Does storing overlap rendering? JSON on standard output: `python -m tests.bench.overlap`.

A worker process with the demo model renders a job into a store whose every PUT takes 300 ms.
`busy_share` is the time that the engine's thread spends in the model, from its first evaluation
to its last image, over that time; `rows_share` how full its batches were meanwhile. With --check
the exit code is 1 if `busy_share` is not as wanted.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.ledger import open_ledger
from jobs.ledger.types import JobState
from tests.bench.wanted import Wanted, exit_code, judged
from tests.servers import Valkey

PUT_S = 0.3
WANTED = (Wanted("busy_share", least=0.97),)
PATIENCE_S = 1200.0
IMAGES = 64
MANIFEST = """\
version: 1
name: overlap
model: demo
defaults: {width: 128, height: 128, steps: 30, guidance: 2}
prompts:
  - prompt: a red circle on a blue background
    seeds: {start: 0, count: COUNT}
"""


def wait_at_every_put(seconds: float) -> None:
    """Patches this process's stores."""
    from jobs.storage import LocalStore

    put = LocalStore.put

    @functools.wraps(put)
    def slow_put(*args: Any, **options: Any) -> bool:
        time.sleep(seconds)
        return put(*args, **options)

    LocalStore.put = slow_put  # type: ignore[method-assign]


def time_the_model(path: Path) -> None:
    """Patches this process's model: a line for each call on the engine's thread, begin and end in
    seconds and how many rows it had."""
    from sd_core.model.diffusion import LatentDiffusion

    out = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def timed(name: str) -> Callable[..., Any]:
        call = getattr(LatentDiffusion, name)

        @functools.wraps(call)
        def note(model: Any, first: Any, *args: Any, **options: Any) -> Any:
            began = time.monotonic()
            result = call(model, first, *args, **options)
            ended = time.monotonic()
            if threading.current_thread().name == "sdbatch-engine":
                # Padding has latents of zeros.
                used = int(first.flatten(1).any(1).sum()) if name == "denoise" else 0
                of = len(first) if name == "denoise" else 0
                os.write(out, f"{began} {ended} {used} {of}\n".encode())
            return result

        return note

    for name in ("denoise", "decode", "encode_prompt"):
        setattr(LatentDiffusion, name, timed(name))


def measure(folder: Path, images: int = IMAGES, slots: int | None = None) -> dict[str, Any]:
    """Figures of one job. slots: shards at a time, by default as many as a worker takes."""
    manifest = folder / "overlap.yaml"
    manifest.write_text(MANIFEST.replace("COUNT", str(images)))
    calls = folder / "calls"
    (folder / "valkey").mkdir()
    valkey = Valkey(folder / "valkey")
    environ = {**os.environ, "SDBATCH_REDIS": valkey.url, "SDBATCH_DTYPE": "float32"}
    command = [sys.executable, "-m", "tests.bench.overlap", "--worker", str(calls)]
    command += [] if slots is None else ["--slots", str(slots)]
    try:
        submit = ["submit", str(manifest), "--store", str(folder / "out"), "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "jobs.cli", *submit],
            env=environ,
            capture_output=True,
            text=True,
            check=True,
        )
        job_id = json.loads(done.stdout)["job"]
        ledger = open_ledger(valkey.url)
        with (folder / "worker.log").open("wb") as log:
            worker = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
            try:
                deadline = time.monotonic() + PATIENCE_S
                while (status := ledger.status(job_id)).state is not JobState.DONE:
                    if time.monotonic() > deadline:
                        raise TimeoutError((folder / "worker.log").read_text())
                    time.sleep(0.1)
            finally:
                worker.terminate()
                worker.wait()
        return {"images": status.done, "put_s": PUT_S, "slots": slots, **_shares(calls)}
    finally:
        valkey.kill()


def _shares(path: Path) -> dict[str, Any]:
    calls = [tuple(map(float, line.split())) for line in path.read_text().splitlines()]
    whole_s = calls[-1][1] - calls[0][0]
    busy_s = sum(ended - began for began, ended, _, _ in calls)
    idle_s = sorted(b[0] - a[1] for a, b in itertools.pairwise(calls))
    return {
        "seconds": round(whole_s, 1),
        "busy_share": round(busy_s / whole_s, 4),
        "rows_share": round(sum(c[2] for c in calls) / sum(c[3] for c in calls), 3),
        "longest_idle_s": [round(gap, 3) for gap in idle_s[-5:]],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--slots", type=int)
    parser.add_argument("--check", action="store_true", help="fail if a wanted figure is missed")
    parser.add_argument("--worker", type=Path, help="for itself")
    args = parser.parse_args()
    if args.worker is not None:
        from jobs.cli.root import main as sdbatch
        from worker import process

        wait_at_every_put(PUT_S)
        time_the_model(args.worker)
        if args.slots is not None:
            process.SLOTS = args.slots
        return sdbatch(["worker"])
    with tempfile.TemporaryDirectory(prefix="sdbatch-bench-") as folder:
        report = judged(measure(Path(folder), args.images, args.slots), WANTED)
    print(json.dumps(report, indent=2))
    return exit_code(report, check=args.check)


if __name__ == "__main__":
    sys.exit(main())
