"""Measure and check the CUDA path, as JSON: `python -m tests.bench.gpu`.

    python -m tests.bench.gpu                       # on a GPU, at v1 size, within --seconds
    python -m tests.bench.gpu --device cpu --quick  # a small model on a CPU: that it all runs
    python -m tests.bench.gpu --only exact,tick     # some sections

Each section is a function of this package; what it found is written to --out as soon as it ends, so
whatever breaks the run off leaves what was measured. A section that raises leaves its error, and
the exit code is 1. Milliseconds are the device's, by events, of many calls in a row, unless a name
says `cpu` (until the call returns) or `wall`. Weights of v1 size are random, for their values do
not change the time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.gpu.bench import DTYPES, Bench
from tests.bench.gpu.correctness import correct, exact
from tests.bench.gpu.job import job
from tests.bench.gpu.kernels import kernels
from tests.bench.gpu.machine import machine
from tests.bench.gpu.peer import peer
from tests.bench.gpu.speed import decode, evaluation, start, tick
from tests.bench.wanted import Wanted, exit_code, judged

SECTIONS: tuple[Callable[[Bench], dict[str, Any]], ...] = (
    machine,
    correct,
    evaluation,
    tick,
    exact,
    decode,
    job,
    peer,
    start,
    kernels,
)

WANTED = (
    Wanted("evaluation.2.of_limit", least=0.22),
    Wanted("evaluation.16.of_limit", least=0.40),
    Wanted("peer.2.ratio", most=0.85),
    Wanted("peer.16.ratio", most=0.90),
    Wanted("tick.2.lost_share", most=0.03),
    Wanted("tick.16.lost_share", most=0.02),
    Wanted("tick.16.waits", most=0),
    Wanted("job.50_steps.busy", least=0.97),
    Wanted("job.20_steps.busy", least=0.95),
    Wanted("job.20_steps.of_possible", least=0.92),
    Wanted("exact.single_of_fast", most=1.15),
    Wanted("start.first_image_wall_s", most=15),
)
LEAST_LEFT_S = 20.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, help="float16 on CUDA, else float32")
    parser.add_argument("--quick", action="store_true", help="a small model, few repeats")
    parser.add_argument("--seconds", type=float, default=450.0, help="no section begins after that")
    parser.add_argument("--only", help="names of sections, with commas; machine comes always")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "."), "gpu.json"))
    parser.add_argument("--check", action="store_true", help="exit code 1 if not as wanted")
    args = parser.parse_args()
    bench = Bench(args.device, args.dtype, quick=args.quick, seconds=args.seconds)
    wanted = None if args.only is None else {*args.only.split(","), "machine"}
    for section in SECTIONS:
        name = section.__name__
        if wanted is None or name in wanted:
            bench.report[name] = run(bench, section)
            write(bench, args.out)
    if wanted is None and bench.cuda and not args.quick:
        bench.report = judged_so_far(bench.report)
        write(bench, args.out)
    print(args.out.read_text("utf-8"), end="")
    failed = any("error" in part for part in bench.report.values() if isinstance(part, dict))
    return 1 if failed else exit_code(bench.report, check=args.check)


def run(bench: Bench, section: Callable[[Bench], dict[str, Any]]) -> dict[str, Any]:
    """The findings of a section, with the seconds that it took."""
    name = section.__name__
    if bench.left_s < LEAST_LEFT_S:
        return {"skipped": "no time left"}
    print(f"{name} ...", file=sys.stderr, flush=True)
    began = time.monotonic()
    try:
        found = section(bench)
    except Exception as error:
        where = traceback.format_exc(limit=-4)[-900:]
        found = {"error": f"{type(error).__name__}: {error}"[:500], "where": where}
    return {**found, "section_s": round(time.monotonic() - began, 1)}


def judged_so_far(report: dict[str, Any]) -> dict[str, Any]:
    """With what was wanted of the figures that are there."""

    def there(wanted: Wanted) -> bool:
        part: Any = report
        for name in wanted.figure.split("."):
            part = part.get(name) if isinstance(part, dict) else None
        return isinstance(part, int | float)

    return judged(report, [wanted for wanted in WANTED if there(wanted)])


def write(bench: Bench, path: Path) -> None:
    bench.report["seconds"] = round(time.monotonic() - bench.began, 1)
    path.write_text(json.dumps(bench.report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
