"""How far the time of a plan is from that of its run: `python -m tests.bench.plans`, as JSON.

`sdbatch bench` measures the demo model at three sizes, and three jobs of other prompts are made.
Then ten manifests are planned by the one and by the records of the others, and rendered: large and
small jobs, sizes that were measured and others, samplers of one and two evaluations, guidance of
every kind, and a picture to begin with. An error is (planned - rendered) / rendered.
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

WANTED = (Wanted("largest_error.records", most=0.1),)
PHOTO = Path(jobs.examples.__file__).parent / "photos/red-circle-on-blue.png"

EARLIER: tuple[dict[str, Any], ...] = (
    {"prompts": [{"prompt": "a green cross", "seeds": {"start": 0, "count": 64}}]},
    {
        "defaults": {"sampler": "ddim", "steps": 30},
        "prompts": [{"prompt": "a white square", "seeds": {"start": 0, "count": 32}}],
    },
    {
        "defaults": {"width": 256, "height": 256, "steps": 20},
        "prompts": [{"prompt": "a green cross", "seeds": {"start": 0, "count": 12}}],
    },
)
"""Jobs whose records are the earlier ones."""

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


def call(folder: Path, *arguments: str, store: str) -> dict[str, Any]:
    """The JSON that a command gives."""
    environ = os.environ | {"SDBATCH_CACHE": str(folder / "cache"), "SDBATCH_STORE": store}
    done = run_command([*arguments, "--json"], environ, folder)
    if done.returncode:
        raise RuntimeError(done.stderr)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def measure(folder: Path) -> dict[str, Any]:
    """The report."""
    (folder / "photo.png").write_bytes(PHOTO.read_bytes())
    call(folder, "bench", store="none")
    for number, manifest in enumerate(EARLIER):
        call(folder, "run", _written(folder, f"earlier-{number}", manifest), store="earlier")
    jobs_found: dict[str, Any] = {}
    for number, (name, manifest) in enumerate(MANIFESTS.items()):
        file = _written(folder, str(number), manifest)
        planned = {
            by: call(folder, "plan", file, store=store)["estimate"]
            for by, store in (("bench", "none"), ("records", "earlier"))
        }
        assert [one["by"][0]["from"] for one in planned.values()] == list(planned)
        rendered_s = call(folder, "run", file, "--no-reuse", store="held-out")["render_s"]
        error = {by: one["seconds"] / rendered_s - 1 for by, one in planned.items()}
        jobs_found[name] = {
            "rendered_s": rendered_s,
            "planned_s": {by: one["seconds"] for by, one in planned.items()},
            "stated": {by: one["error"] for by, one in planned.items()},
            "error": {by: round(value, 3) for by, value in error.items()},
        }
        told = ", ".join(f"{value:+.1%} by {by}" for by, value in error.items())
        print(f"{name}: {told}", file=sys.stderr, flush=True)
    largest = {
        by: max(abs(one["error"][by]) for one in jobs_found.values()) for by in ("bench", "records")
    }
    return {"jobs": jobs_found, "largest_error": largest}


def _written(folder: Path, name: str, manifest: dict[str, Any]) -> str:
    """Name of a file with the manifest in it."""
    whole = {"version": 1, "model": "demo", "name": name, **manifest}
    (folder / f"{name}.yaml").write_text(json.dumps(whole))
    return f"{name}.yaml"


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
