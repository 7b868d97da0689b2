"""How soon a process evaluates: JSON on standard output, `python -m tests.bench.start`.

`start_s`: from the start of a Python process to the first evaluation of the UNet, for a job of one
image at v1 size, from a float16 `.safetensors` file of random weights that is in the page cache.
The first start on a machine, `first_start_s`, lays the weights out and keeps them; those that are
measured after it map what it kept. The peer, `import_and_read`, is a process that imports torch and
transformers' two classes for CLIP and reads the file. Both are started in turns; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from sd_core.weights.export import save_single_file
from tests.bench.measure import SPECS, compared, random_model
from tests.bench.wanted import Wanted, exit_code, judged

WANTED = (Wanted("start_s.ratio_import_and_read", most=1.5),)

OURS = """
import sys, time
from pathlib import Path
from worker.checkpoint.load import ModelChoice, load
from sd_core.engine.engine import Engine, Request
from sd_core.spec import Sampling

model = load(ModelChoice("v1", sys.argv[1], cache=Path(sys.argv[2])))
denoise = model.denoise

def first(*arguments):
    print(time.time(), flush=True)
    import os, threading
    for thread in threading.enumerate():
        if thread.name == "keep":  # for the next start
            thread.join()
    os._exit(0)

model.denoise = first
Engine(model).submit(Request("a red circle", Sampling())).result()
"""

PEER = """
import sys, time
import torch
from transformers import CLIPTextModel, CLIPTokenizer
with open(sys.argv[1], "rb") as file:
    chunk = bytearray(2**24)
    while file.readinto(chunk):
        pass
print(time.time())
"""

SIDES = {"sdbatch": OURS, "import_and_read": PEER}


def seconds(code: str, path: Path) -> float:
    began = time.time()
    command = [sys.executable, "-c", code, str(path), str(path.with_name("cache"))]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(told) - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SPECS, default="v1")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="exit code 1 if not as wanted")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_single_file(random_model(SPECS[args.model], torch.float16), path)
        measured: dict[str, list[float]] = {name: [] for name in SIDES}
        seconds(PEER, path)  # brings everything into the page cache
        first_s = seconds(OURS, path)
        for _ in range(args.runs):
            for name, code in SIDES.items():
                measured[name].append(seconds(code, path))
        size = path.stat().st_size
    medians = {name: statistics.median(values) for name, values in measured.items()}
    report = judged(
        {
            "file_bytes": size,
            "first_start_s": round(first_s, 2),
            "start_s": compared(medians, 2),
        },
        WANTED,
    )
    print(json.dumps(report, indent=2))
    return exit_code(report, check=args.check)


if __name__ == "__main__":
    sys.exit(main())
