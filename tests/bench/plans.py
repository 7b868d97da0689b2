"""How far the time of a plan is from that of its run: `python -m tests.bench.plans`, as JSON.

`sdbatch bench` measures the demo model at three sizes, then ten manifests are planned and rendered:
large and small jobs, sizes that were measured and others, samplers of one and two evaluations,
guidance of every kind, and a picture to begin with. `error` is (planned - rendered) / rendered.
With --check the exit code is 1 if one is not as wanted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import jobs.examples
from tests.bench.wanted import Wanted, exit_code, judged
from tests.commands import run_command

WANTED = (Wanted("largest_error", most=0.1),)
PHOTO = Path(jobs.examples.__file__).parent / "photos/red-circle-on-blue.png"

MANIFESTS: dict[str, dict[str, Any]] = {
    "many": {"prompts": [{"prompt": "a red ring", "seeds": {"start": 0, "count": 96}}]},
    "few": {"prompts": ["a red ring", "a blue star"]},
    "one": {"defaults": {"steps": 50}, "prompts": ["a red ring"]},
    "two evaluations": {
        "defaults": {"sampler": "heun", "steps": 12},
        "prompts": [{"prompt": "a red ring", "seeds": {"start": 0, "count": 32}}],
    },
    "without guidance": {
        "defaults": {"guidance": 1, "sampler": "dpmpp_2m", "steps": 20},
        "prompts": [{"prompt": "a red ring", "seeds": {"start": 0, "count": 64}}],
    },
    "perturbed": {
        "defaults": {"pag": {"scale": 3}, "sampler": "ddim", "steps": 20},
        "prompts": [{"prompt": "a red ring", "seeds": {"start": 0, "count": 32}}],
    },
    "guidance in a part": {
        "defaults": {"guidance_to": 0.5, "sampler": "ddim", "steps": 30},
        "prompts": [{"prompt": "a red ring", "seeds": {"start": 0, "count": 32}}],
    },
    "other sizes": {
        "defaults": {"width": 160, "height": 128, "steps": 20},
        "prompts": [{"prompt": "a red ring", "seeds": {"start": 0, "count": 32}}],
    },
    "large": {
        "defaults": {"width": 256, "height": 192, "steps": 20},
        "prompts": [{"prompt": "a red ring", "seeds": {"start": 0, "count": 12}}],
    },
    "from a picture": {
        "defaults": {"init_image": "photo.png", "strength": 0.6, "steps": 30},
        "prompts": [{"prompt": "a green ring", "seeds": {"start": 0, "count": 48}}],
    },
}


def call(folder: Path, *arguments: str) -> dict[str, Any]:
    """The JSON that a command gives."""
    environ = os.environ | {"SDBATCH_CACHE": str(folder / "cache")}
    done = run_command([*arguments, "--json"], environ, folder)
    if done.returncode:
        raise RuntimeError(done.stderr)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def measure(folder: Path) -> dict[str, Any]:
    """The report."""
    (folder / "photo.png").write_bytes(PHOTO.read_bytes())
    call(folder, "bench")
    jobs_found: dict[str, Any] = {}
    for number, (name, manifest) in enumerate(MANIFESTS.items()):
        file = f"{number}.yaml"
        (folder / file).write_text(json.dumps({"version": 1, "model": "demo", **manifest}))
        planned = call(folder, "plan", file)["estimate"]["seconds"]
        rendered = call(folder, "run", file)["render_s"]
        error = (planned - rendered) / rendered
        jobs_found[name] = {"planned_s": planned, "rendered_s": rendered, "error": round(error, 3)}
        print(f"{name}: {error:+.1%}", file=sys.stderr, flush=True)
    largest = max(abs(one["error"]) for one in jobs_found.values())
    return {"jobs": jobs_found, "largest_error": largest}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit code 1 if not as wanted")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        report = judged(measure(Path(folder)), WANTED)
    print(json.dumps(report, indent=2))
    return exit_code(report, check=check)


if __name__ == "__main__":
    sys.exit(main())
