"""The gallery of many images in a browser: `python -m tests.bench.gallery`, as JSON.

Records are made up, and each picture is the same small file. Times are seconds from the beginning
of the navigation; memory is MiB of the page's process (private) and of all of Chromium's
(proportional), after a collection of garbage. --keep FOLDER leaves the gallery there. With --check
the exit code is 1 if a figure is not as wanted.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.folder.layout import JobFolder, JobKeys
from jobs.report import write_report
from jobs.storage import LocalStore
from tests.bench.wanted import Wanted, exit_code, judged
from tests.jobs.report.browser import Browser
from tests.worker.samples import MODEL, RENDER, a_task, pixels
from worker.output.encode import encode_image
from worker.output.record import image_record, record_line

WANTED = (
    Wanted("first_tiles_s", most=1.0),
    Wanted("page_mib", most=300.0),
    Wanted("facet_s", most=0.2),
    Wanted("search_s", most=0.5),
    Wanted("sort_s", most=0.5),
)

KEYS = JobKeys("many-0123456789ab")

COLOURS = ("red", "green", "blue", "teal", "amber", "violet", "black", "white")
THINGS = ("circle", "ring", "star", "cross", "harbour", "lighthouse", "forest", "portrait of a fox")
STYLES = ("oil painting", "pencil drawing", "studio photo, 85mm", "watercolour", "linocut")
SAMPLERS = ("plms", "ddim", "euler_a", "dpmpp_2m", "heun")

WATCH = """
window.seen = {};
const note = (name) => { seen[name] ??= performance.now() / 1000; };
const timer = setInterval(() => {
  if ([...document.querySelectorAll(".tile img")].some((image) => image.naturalWidth)) {
    note("first_tiles_s");
  }
  if (typeof loading === "object" && loading.done) { note("complete_s"); clearInterval(timer); }
}, 5);
"""

TIMED = """
new Promise((done) => {
  const begun = performance.now();
  %s;
  answer();
  requestAnimationFrame(() => setTimeout(() => done((performance.now() - begun) / 1000)));
})
"""


def records(images: int) -> Iterator[dict[str, Any]]:
    """Records of a large sweep: settings, labels and prompts differ."""
    chance = random.Random(1)
    base = image_record(a_task(0), MODEL, RENDER)
    line = record_line(base, "images/x.png", b"x", timings_s={"render": 1.25})
    for index in range(images):
        spec = f"{chance.getrandbits(64):016x}"
        seed = chance.getrandbits(32)
        prompt = (
            f"a {chance.choice(COLOURS)} {chance.choice(THINGS)} on a {chance.choice(COLOURS)} "
            f"background, {chance.choice(STYLES)}, variation {index // 4}"
        )
        yield line | {
            "index": index,
            "name": f"{index:06d}-s{seed}",
            "path": f"images/{index:06d}-s{seed}-{spec}.png",
            "prompt": prompt,
            "negative": "blurry, low quality" if index % 3 else "",
            "seed": seed,
            "sampler": chance.choice(SAMPLERS),
            "steps": chance.choice((20, 25, 30, 50)),
            "guidance": chance.choice((5.0, 7.5, 9.0)),
            "meta": {"sku": f"A-{index % 40}", "shop": chance.choice(("north", "south"))},
            "bytes": chance.randrange(200_000, 500_000),
            "sha256": f"{chance.getrandbits(256):064x}",
            "timings_s": {"render": chance.uniform(1, 4)},
        }


def write(folder: Path, images: int) -> dict[str, Any]:
    """Makes the gallery, and what it took."""
    made = JobFolder(LocalStore(folder), KEYS)
    small = encode_image(pixels(), image_record(a_task(0), MODEL, RENDER), "webp")
    rows = list(records(images))
    first = folder / KEYS(rows[0]["path"])
    first.parent.mkdir(parents=True)
    first.write_bytes(small)
    begun = time.perf_counter()
    write_report(made, rows)
    written_s = time.perf_counter() - begun
    for row in rows[1:]:
        (folder / KEYS(row["path"])).symlink_to(first.name)
    files = list((folder / KEYS.job_id / "gallery").iterdir())
    index = sum(path.stat().st_size for path in files if "details" not in path.name)
    return {
        "images": images,
        "write_s": round(written_s, 2),
        "files": len(files),
        "index_mib": round(index / 2**20, 1),
        "page_kib": round((folder / KEYS.index).stat().st_size / 1024, 1),
    }


def look(folder: Path) -> dict[str, Any]:
    """Opens the page and tries it."""
    with Browser() as browser:
        browser.open("about:blank")
        before = memory(browser)
        browser.begin_with(WATCH)
        browser.open((folder / KEYS.index).as_uri())
        while not browser.run("loading.done"):
            time.sleep(0.05)
        seen = browser.run("new Promise((done) => setTimeout(() => done(seen), 200))")
        report = {
            **seen,
            "facet_s": browser.run(TIMED % 'query.chosen.set("sampler", new Set(["ddim"]))'),
            "range_s": browser.run(TIMED % 'query.chosen.set("seed", {from: 1e6, to: 3e9})'),
            "search_s": browser.run(TIMED % 'query.words = ["harbour", "25"]'),
            "search_again_s": browser.run(TIMED % 'query.words = ["fox"]'),
            "sort_s": browser.run(
                TIMED % 'query.words = []; query.chosen.clear(); query.order = "seed"'
            ),
            "tiles": browser.run("document.querySelectorAll('.tile').length"),
        }
        assert browser.messages == [], browser.messages
        page, whole = memory(browser)
        report = {name: round(value, 3) for name, value in report.items()}
        blank = {"blank_page_mib": before[0], "blank_chromium_mib": before[1]}
        return report | {"page_mib": page, "chromium_mib": whole} | blank


def memory(browser: Browser) -> tuple[float, float]:
    """MiB: private to the page's process, and proportional of all processes."""
    browser.collect_garbage()
    private = whole = 0
    for pid in browser.processes():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text()
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:
            continue  # it has ended
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        whole += kib["Pss"]
        if "--type=renderer" in command:
            private = max(private, kib["Private_Dirty"] + kib["Private_Clean"])
    return round(private / 1024, 1), round(whole / 1024, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--keep", type=Path, help="an empty folder for the gallery")
    parser.add_argument("--check", action="store_true", help="exit code 1 if not as wanted")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.keep or Path(temporary)).resolve()
        report = judged(write(folder, args.images) | look(folder), WANTED)
    print(json.dumps(report, indent=2))
    return exit_code(report, check=args.check)


if __name__ == "__main__":
    sys.exit(main())
