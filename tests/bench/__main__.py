"""`make bench`: our speed beside named peers' in the same run, as JSON on standard output.

One model evaluation and decode (`evaluation`), a whole image (`image`) and the start of a process
(`start`) at v1 size; a mixed job (`inflight`); PNG files (`files`); and what no peer has: LoRA of
each image (`loras`), the control plane, what an image costs beside its rendering, how well storing
overlaps it, how far a plan's time is from its run's, and how soon the live page shows what happens
(`control_plane`, `overhead`, `overlap`, `plans`, `dashboard`). Each is a module of this package
with its own command.

The first three and `loras` take minutes where the CPU has bfloat16 products, hours where it has
not; the rest some twenty minutes. --only names those to run. With --check the exit code is 1 if a
figure is not as it is wanted.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from typing import Any

import torch

from tests.bench.measure import in_fresh_process
from tests.bench.wanted import exit_code

MODULES = (
    "evaluation",
    "image",
    "start",
    "loras",
    "inflight",
    "files",
    "control_plane",
    "overhead",
    "overlap",
    "plans",
    "dashboard",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=MODULES, action="append", help="may be repeated")
    parser.add_argument("--check", action="store_true", help="exit code 1 if not as wanted")
    args = parser.parse_args()
    report: dict[str, Any] = {
        "machine": {
            "threads": torch.get_num_threads(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "torch": torch.__version__,
            "os": platform.platform(),
        }
    }
    for name in args.only or MODULES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        report[name] = json.loads(in_fresh_process(name))
    print(json.dumps(report, indent=2))
    return exit_code(report, check=args.check)


if __name__ == "__main__":
    sys.exit(main())
