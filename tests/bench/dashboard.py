"""How soon the live page shows what happens, as JSON: `python -m tests.bench.dashboard`.

landing    500 pictures of the demo model by 3 workers: seconds from the ledger's event to the
           picture's place on the job's page, and to its pixels there
listing    10,000 jobs: seconds of the list's first part, of a search, and of the whole page
idle       what the page costs while 1,000 jobs rest: calls to the server a second

Everything is real: Valkey, SeaweedFS, workers, Chromium. With --check the exit code is 1 if a
figure is not as wanted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from jobs.dashboard.server import Place, serving
from jobs.ledger import open_ledger
from jobs.ledger.spans import read_spans
from jobs.ledger.types import Event, JobState
from jobs.manifest.load import load_manifest
from jobs.storage import open_store
from tests.bench.control_plane import servers
from tests.bench.wanted import Wanted, exit_code, judged
from tests.commands import run_command
from tests.jobs.report.browser import Browser
from tests.ledgers import new_job
from tests.servers import Valkey

IMAGES = 500
WORKERS = 3
JOBS = 10_000
IDLE_JOBS = 1000
IDLE_S = 10.0
PATIENCE_S = 600.0

MANIFEST = f"""\
version: 1
name: landing
model: demo
defaults: {{width: 128, height: 128, steps: 4}}
prompts:
  - prompt: a red circle on a blue background
    seeds: {{start: 0, count: {IMAGES}}}
"""

NOTE_TIMES = """\
window.placed = {};
window.drawn = {};
document.addEventListener("DOMContentLoaded", () => new MutationObserver((changes) => {
  for (const item of changes.flatMap((change) => [...change.addedNodes])) {
    const index = item.picture.index;
    if (index in placed) continue;
    placed[index] = Date.now() / 1000;
    const image = item.querySelector("img");
    image.loading = "eager";
    image.addEventListener("load", () => { drawn[index] ??= Date.now() / 1000; });
  }
}).observe(document.getElementById("gallery"), { childList: true }));
"""


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.05)


def landing(folder: Path) -> dict[str, Any]:
    manifest = folder / "landing.yaml"
    manifest.write_text(MANIFEST)
    with servers(folder) as (valkey, address), ExitStack() as stack:
        ledger = open_ledger(valkey.url)
        environ = {**os.environ, "SDBATCH_MODEL": "demo", "OMP_NUM_THREADS": "1"}
        for _ in range(WORKERS):
            command = [sys.executable, "-m", "jobs.cli", "worker"]
            worker = subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)
            stack.callback(worker.wait)
            stack.callback(worker.terminate)
        wait_until(lambda: len(ledger.workers()) == WORKERS, "workers")
        running = stack.enter_context(serving(Place("127.0.0.1", 0), ledger, open_store))
        base = running.address.partition("/#")[0]
        page = stack.enter_context(Browser())
        page._call("Page.addScriptToEvaluateOnNewDocument", source=NOTE_TIMES)
        job_id = load_manifest(manifest).job_id()
        page.open(f"{base}/jobs/{job_id}")  # before there is the job
        done = run_command(["submit", str(manifest), "--store", address], os.environ)
        assert done.returncode == 0, done.stderr
        wait_until(lambda: ledger.status(job_id).state is JobState.DONE, "the job's end")
        wait_until(lambda: page.run("Object.keys(drawn).length") == IMAGES, "all pictures")
        settled = settle_times(ledger.events(job_id, limit=10_000))
        placed, drawn = page.run("placed"), page.run("drawn")
        status = ledger.status(job_id)
        return {
            "images": IMAGES,
            "workers": WORKERS,
            "images_per_s": round(IMAGES / (status.ended_s - status.created_s), 2),
            "settles": len(set(settled.values())),
            "placed_s": figures([placed[str(i)] - settled[i] for i in settled]),
            "drawn_s": figures([drawn[str(i)] - settled[i] for i in settled]),
        }


def settle_times(events: list[Event]) -> dict[int, float]:
    """When the ledger was told of each image, by its clock, which is this machine's."""
    return {
        index: event.time_s
        for event in events
        if event.kind == "settled"
        for index in read_spans(event.values["images"], IMAGES)
    }


def figures(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "median": round(statistics.median(ordered), 3),
        "p95": round(ordered[int(0.95 * len(ordered))], 3),
        "max": round(ordered[-1], 3),
    }


def listing(folder: Path) -> dict[str, Any]:
    valkey = Valkey(folder)
    try:
        ledger = open_ledger(valkey.url)
        for number in range(JOBS):
            ledger.create(new_job(f"job-{number:05d}"))
        with serving(Place("127.0.0.1", 0), ledger, open_store) as running, Browser() as page:
            base = running.address.partition("/#")[0]
            first = seconds_of(f"{base}/api/jobs")
            found = seconds_of(f"{base}/api/jobs?search=job-0007")
            before = time.monotonic()
            page.open(base)
            while page.run("document.querySelectorAll('#jobs li').length") < 50:
                pass
            whole = time.monotonic() - before
        return {
            "jobs": JOBS,
            "first_part_s": round(first, 3),
            "search_s": round(found, 3),
            "page_s": round(whole, 3),
        }
    finally:
        valkey.kill()


def seconds_of(address: str) -> float:
    """Of an answer; the second of two, as the first one makes connections."""
    for _ in range(2):
        before = time.monotonic()
        with urlopen(address) as answer:
            json.load(answer)
    return time.monotonic() - before


def idle(folder: Path) -> dict[str, Any]:
    valkey = Valkey(folder)
    try:
        ledger = open_ledger(valkey.url)
        for number in range(IDLE_JOBS):
            ledger.create(new_job(f"job-{number:05d}"))
        with (
            serving(Place("127.0.0.1", 0), ledger, open_store) as running,
            Browser() as page,
            valkey.client() as client,
        ):
            page.open(running.address)
            wait_until(lambda: page.run("document.querySelector('#jobs li') !== null"), "the page")
            before = client.info("stats")["total_commands_processed"]
            cpu_before = time.process_time()
            time.sleep(IDLE_S)
            calls = client.info("stats")["total_commands_processed"] - before
            cpu_s = time.process_time() - cpu_before
        return {
            "jobs": IDLE_JOBS,
            "calls_per_s": round(calls / IDLE_S, 2),
            "server_cpu": round(cpu_s / IDLE_S, 4),
        }
    finally:
        valkey.kill()


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "landing": landing,
    "listing": listing,
    "idle": idle,
}

WANTED = {
    "landing": (Wanted("placed_s.max", most=2.0),),
    "listing": tuple(Wanted(figure, most=1.0) for figure in ("first_part_s", "search_s", "page_s")),
    "idle": (Wanted("calls_per_s", most=5.0),),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all of them")
    parser.add_argument("--check", action="store_true", help="fail if a wanted figure is missed")
    args = parser.parse_args()
    report = {}
    for part in args.part or PARTS:
        with tempfile.TemporaryDirectory(prefix="sdbatch-bench-") as folder:
            report[part] = judged(PARTS[part](Path(folder)), WANTED[part])
    print(json.dumps(report, indent=2))
    return exit_code(report, check=args.check)


if __name__ == "__main__":
    sys.exit(main())
