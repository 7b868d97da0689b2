"""The gallery and the contact sheets: whole, safe against their own data, and usable."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from jobs import report
from jobs.folder.done import Totals, done_document, write_done
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.records import dump_lines, read_failures, read_records, write_failures
from jobs.report import write_report, write_unfinished_report
from jobs.report.gallery import embeddable_json, gallery_page
from jobs.report.sheets import columns_of, contact_sheet
from jobs.storage import LocalStore
from jobs.task import Failure
from tests.jobs.pictures.files_by_hand import png
from tests.jobs.report.browser import Browser
from tests.servers import PATIENCE_S
from tests.worker.samples import MODEL, RENDER, a_task, pixels
from worker.output.encode import encode_image
from worker.output.record import image_record, record_line

HOSTILE = (
    "</script><script>document.title='taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "<!-- <script> ]]> {{data}} {{script}} & &amp; \u2028 \\u003c",
    "赤い円 🎨 \ud800",
)

KEYS = JobKeys("shapes-1a2b")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def a_record(index: int = 0, **changes: Any) -> dict[str, Any]:
    """A line without an image behind it."""
    record = image_record(a_task(index, **{"seed": 42 + index, **changes}), MODEL, RENDER)
    path = KEYS.path(KEYS.image(record["name"], record["spec"], record["format"]))
    return record_line(record, path, b"%d" % index, timings_s={"render": 1.25})


def put_image(store: LocalStore, index: int = 0, **changes: Any) -> dict[str, Any]:
    task = a_task(index, **{"seed": 42 + index, **changes})
    record = image_record(task, MODEL, RENDER)
    size = {"width": task.sampling.width, "height": task.sampling.height}
    data = encode_image(pixels(index, **size), record, task.format)
    key = KEYS.image(task.name, record["spec"], task.format)
    store.put(key, data)
    return record_line(record, KEYS.path(key), data, timings_s={"render": 1.25})


class Page(HTMLParser):
    """The elements of a page, its data, and whether tags are balanced."""

    VOID = frozenset({"meta", "input", "img", "br", "path"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._stack: list[str] = []
        self.feed(text)
        self.close()
        assert self._stack == []

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.texts["data"])

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._stack.pop() == tag

    def handle_data(self, data: str) -> None:
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        name = attributes.get("id") or tag
        self.texts[name] = (self.texts.get(name, "") + data).strip()


def page_of(records: list[dict[str, Any]], **more: Any) -> Page:
    values: dict[str, Any] = {"total": len(records), "failures": [], "sheets": [], **more}
    return Page(gallery_page("job", records, **values))


def merged(page: Page) -> list[dict[str, Any]]:
    return [page.data["common"] | image for image in page.data["images"]]


def test_page_loads_nothing_from_elsewhere():
    text = gallery_page("job", [a_record()], 1, [], ["grid-0000.jpg"])
    page = Page(text)
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert not attributes.get(name), (tag, name)
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_policy_allows_exactly_this_script_and_style():
    page = page_of([a_record()])
    meta = [m for m in page.tags("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    policy = meta[0]["content"] or ""
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2


@pytest.mark.parametrize("prompt", HOSTILE)
def test_prompts_stay_text(prompt: str):
    plain = page_of([a_record()])
    page = page_of([a_record(prompt=prompt, negative=prompt)], failures=[_failure(prompt)])
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert merged(page)[0]["prompt"] == prompt
    assert merged(page)[0]["negative"] == prompt
    assert page.data["failures"][0]["prompt"] == prompt


def test_a_title_stays_text():
    page = Page(gallery_page("<b>{{data}}</b>", [], 0, [], []))
    assert page.tags("b") == []
    assert page.texts["h1"] == "<b>{{data}}</b>"
    assert page.data["title"] == "<b>{{data}}</b>"


def test_embeddable_json_round_trip():
    for text in HOSTILE:
        encoded = embeddable_json({"text": text})
        assert encoded.isascii()
        assert not set("<>&") & set(encoded)
        assert json.loads(encoded) == {"text": text}


def _failure(prompt: str) -> Failure:
    return Failure(3, "000003-s7", prompt, 7, "ArithmeticError: not finite", attempts=2)


def test_page_holds_every_parameter():
    changes = {"sampler": "ddim", "eta": 0.5, "init_image": "ff.png", "strength": 0.25}
    record = a_record(1, negative="blurry", **changes)
    image = merged(page_of([record, a_record(2)]))[0]
    for name in ("prompt", "negative", "sampler", "steps", "guidance", "eta", "strength", "seed"):
        assert image[name] == record[name]
    assert image["model"] == "demo"
    assert image["model_digest"] == MODEL.digest
    assert image["render_s"] == 1.25
    assert set(image) <= set(page_of([record]).data["labels"])


def test_page_says_which_loras_and_embeddings():
    uses = [
        {"name": "ink", "sha256": "ab" * 32, "weight": 1.0, "text_weight": 1.0},
        {"name": "pen", "sha256": "ab" * 32, "weight": 0.5, "text_weight": 0.5},
        {"name": "oil", "sha256": "ab" * 32, "weight": 0.5, "text_weight": 0.0},
    ]
    odd = {"loras": [5, {}, "x"], "embeddings": "y"}  # anybody may have written a record
    named = {"meta": {"sku": "5", "size": "XL"}, "loras": uses, "embeddings": uses[:1]}
    first, second = merged(page_of([a_record() | named | {"vae": uses[1]}, a_record(1) | odd]))
    assert first["loras"] == "ink, pen 0.5, oil 0.5 (text 0.0)"
    assert first["meta"] == "sku: 5, size: XL"
    assert (first["embeddings"], first["vae"]) == ("ink", "pen")
    assert second["loras"] == "5, None None, x"


def test_what_is_common_is_said_once():
    data = page_of([a_record(i, guidance=5.0 + i) for i in range(3)]).data
    assert data["common"]["sampler"] == "plms"
    assert "guidance" not in data["common"]
    assert [image["guidance"] for image in data["images"]] == [5.0, 6.0, 7.0]


def test_seeds_keep_their_digits_in_a_browser():
    seeds = [0, 2**53 - 1, 2**53, 2**64 - 1]
    images = merged(page_of([a_record(seed=seed) for seed in seeds]))
    assert [image["seed"] for image in images] == [0, 2**53 - 1, str(2**53), str(2**64 - 1)]


def test_report_of_a_job(store: LocalStore):
    records = [put_image(store, index) for index in range(5)]
    assert write_report(JobFolder(store, KEYS), iter(records), [_failure("x")]) == 5
    names = sorted(info.key for info in store.list(KEYS.prefix) if "/images/" not in info.key)
    assert names == [KEYS.sheet(0), KEYS.index]
    page = Page(store.get(KEYS.index).decode())
    assert page.texts["h1"] == "shapes-1a2b"
    assert page.data["sheets"] == ["grid-0000.jpg"]
    assert page.data["failed"] == 1
    assert [image["path"] for image in merged(page)] == [record["path"] for record in records]
    before = store.get(KEYS.index)
    write_report(JobFolder(store, KEYS), records, [_failure("x")])
    assert store.get(KEYS.index) == before


@pytest.mark.parametrize(
    ("planned", "said"),
    [
        (1200, "This job is not finished: it has 3 of 1,200 pictures so far"),
        (5, "This job is not finished: it has 3 of 5 pictures so far"),
        (4, None),  # the fourth failed
        (None, None),
    ],
)
def test_report_of_a_job_that_is_not_finished(store: LocalStore, planned, said):
    records = [put_image(store, index) for index in range(3)]
    plain = contact_sheet(JobFolder(store, KEYS), records)
    store.put(KEYS.records(0), dump_lines(records))
    assert write_unfinished_report(JobFolder(store, KEYS), [_failure("x")], planned=planned)
    page = Page(store.get(KEYS.index).decode())
    assert page.texts.get("unfinished") == said  # in the page itself, so without its script, too
    sheet = store.get(KEYS.sheet(0))
    assert (sheet != plain) == (said is not None)
    assert opened(sheet).height == opened(plain).height + 22 * (said is not None)


def test_without_anything_to_show_there_is_no_report(store: LocalStore):
    assert not write_unfinished_report(JobFolder(store, KEYS), planned=3)
    assert list(store.list("")) == []
    assert write_unfinished_report(JobFolder(store, KEYS), [_failure("x")], planned=3)
    assert [info.key for info in store.list("")] == [KEYS.index]


def test_report_without_images(store: LocalStore):
    assert write_report(JobFolder(store, KEYS), []) == 0
    assert [info.key for info in store.list("")] == [KEYS.index]


def test_huge_jobs_are_cut(store: LocalStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "GALLERY_LIMIT", 9)
    monkeypatch.setattr(report, "SHEET_SIZE", 2)
    monkeypatch.setattr(report, "SHEET_LIMIT", 3)
    assert write_report(JobFolder(store, KEYS), (a_record(i) for i in range(20))) == 20
    page = Page(store.get(KEYS.index).decode())
    assert (page.data["total"], len(page.data["images"])) == (20, 9)
    assert page.data["sheets"] == ["grid-0000.jpg", "grid-0001.jpg", "grid-0002.jpg"]


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_sheet_shows_the_pictures_in_order(store: LocalStore):
    records = []
    for index, colour in enumerate([(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]):
        record = a_record(index, seed=2**64 - 1)
        flat = np.full((64, 64, 3), colour, np.uint8)
        store.put(KEYS(record["path"]), encode_image(flat, record, "png"))
        records.append(record)
    sheet = opened(contact_sheet(JobFolder(store, KEYS), records))
    assert sheet.width == 2 * (192 + 12) + 12
    found = [sheet.getpixel((108 + x, 108 + y)) for y in (0, 226) for x in (0, 204)]
    for pixel, wanted in zip(
        found, [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)], strict=True
    ):
        assert np.abs(np.subtract(pixel, wanted)).max() <= 4


def test_sheet_of_mixed_shapes_and_formats(store: LocalStore):
    changes = [{"width": 128}, {"height": 256, "format": "jpeg"}, {"format": "webp"}]
    records = [put_image(store, i, **change) for i, change in enumerate(changes)]
    sheet = opened(contact_sheet(JobFolder(store, KEYS), records))
    assert sheet.size == (12 + 3 * (192 + 12), 12 + 384 + 22 + 12)


FLAWS = {
    "missing": None,
    "damaged": b"\x89PNG\r\n\x1a\n",
    "too large": png((20_000, 20_000), 8, 2, b""),
    "without pixels": png((64, 64), 8, 2, b""),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_sheet_without_one_of_its_images(store: LocalStore, flaw: str):
    records = [put_image(store, index) for index in range(2)]
    key = KEYS(records[0]["path"])
    store.delete(key)
    data = FLAWS[flaw]
    if data is not None:
        store.put(key, data)
    assert opened(contact_sheet(JobFolder(store, KEYS), records)).width == 2 * (192 + 12) + 12


@pytest.mark.parametrize(
    ("count", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (7, 4), (12, 4), (100, 10)]
)
def test_columns(count: int, columns: int):
    assert columns_of([a_record()] * count) == columns


def test_totals_and_done(store: LocalStore):
    records = [put_image(store, index) for index in range(3)]
    store.put(KEYS.records(1), dump_lines(records[2:]))
    store.put(KEYS.records(0), dump_lines(records[:2]))
    assert list(read_records(JobFolder(store, KEYS))) == records
    totals = Totals()
    for record in reversed(records):
        totals.add(record)
    done = done_document(KEYS.job_id, totals, failed=1, model=records[0]["model"], software={})
    assert done["totals"] == {
        "bytes": sum(record["bytes"] for record in records),
        "evaluations": 153,
        "render_s": 3.75,
    }
    assert (done["job"], done["images"], done["failed"]) == (KEYS.job_id, 3, 1)
    write_done(JobFolder(store, KEYS), done)
    assert json.loads(store.get(KEYS.done)) == done


def test_digest_of_all_images_can_be_had_in_a_shell(store: LocalStore):
    totals = Totals()
    for index in range(4):
        totals.add(put_image(store, index))
    command = "sha256sum images/* | cut -c1-64 | sort | sha256sum"
    folder = store.root / KEYS.job_id
    output = subprocess.run(command, shell=True, cwd=folder, capture_output=True, check=True)
    assert output.stdout.decode().split()[0] == totals.images_digest
    assert Totals().images_digest == hashlib.sha256().hexdigest()


def test_failures_file(store: LocalStore):
    failures = [_failure(HOSTILE[0]), Failure(0, "000000-s0", "赤", 0, "why")]
    write_failures(JobFolder(store, KEYS), failures)
    assert read_failures(JobFolder(store, KEYS)) == failures[::-1]
    write_failures(JobFolder(store, KEYS), [])
    assert store.head(KEYS.failures) is None
    assert read_failures(JobFolder(store, KEYS)) == []


# In a real browser


def wait_for(browser: Browser, script: str, wanted: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (found := browser.run(script)) != wanted:
        assert time.monotonic() < deadline, f"{script} is {found!r}, not {wanted!r}"
        time.sleep(0.02)


TILES = "document.querySelectorAll('.tile').length"
LOADED = "[...document.images].filter(i => i.naturalWidth > 0 && i.closest('.tile')).length"


def test_gallery_in_a_browser(store: LocalStore):
    odd = "folder é/#1? 100% \"'&"
    records = [
        put_image(store, 0, prompt=HOSTILE[0]),
        put_image(store, 1, prompt=HOSTILE[1], name=odd),
        put_image(store, 2, prompt="a green STAR", seed=2**64 - 1, negative="blurry"),
        put_image(store, 3, prompt="a green ring", guidance=3.0),
    ]
    write_report(JobFolder(store, KEYS), records, [_failure("<b>x</b>")])
    with Browser() as browser:
        browser.open(Path(store.url(KEYS.index)).as_uri())
        wait_for(browser, LOADED, 4)
        assert browser.run("document.title") == "shapes-1a2b"
        assert "<b>x</b>" in browser.run("document.querySelector('#failures li').textContent")

        browser.press("/")
        browser.type("green star")
        wait_for(browser, TILES, 1)
        assert browser.run("document.getElementById('count').innerText") == "1 of 4 pictures"
        browser.run("document.getElementById('filter').value = ''; filter()")
        wait_for(browser, TILES, 4)

        browser.run("document.querySelectorAll('.tile')[1].focus()")
        browser.press("Enter")
        wait_for(browser, "document.getElementById('viewer').open", True)
        assert browser.run("document.getElementById('prompt').innerText") == HOSTILE[1]
        browser.press("ArrowRight")
        assert browser.run("document.getElementById('position').innerText") == "3 of 4"
        assert "18446744073709551615" in browser.run("document.querySelector('dl').innerText")
        entry = yaml.safe_load(browser.run("entryOf(images[found[current]])"))
        assert entry == {
            "prompt": "a green STAR",
            "negative": "blurry",
            "sampler": "plms",
            "steps": 50,
            "guidance": 7.5,
            "width": 64,
            "height": 64,
            "seeds": [2**64 - 1],
        }
        browser.press("Escape")
        wait_for(
            browser, "document.activeElement.getAttribute('href')?.slice(0, 13)", "images/000002"
        )
        assert browser.run("document.title") == "shapes-1a2b"

        browser.open(Path(store.url(KEYS.index)).as_uri() + "?again#3")
        wait_for(browser, "document.getElementById('prompt').innerText", "a green ring")
        assert browser.messages == []


def test_a_page_of_five_thousand_pictures_shows_a_few_at_first(tmp_path: Path):
    path = tmp_path / "index.html"
    records = [a_record(index) for index in range(5000)]
    path.write_text(gallery_page("job", records, 6000, [], []))
    with Browser() as browser:
        browser.open(path.as_uri())
        assert 0 < browser.run(TILES) < 1000
        count = browser.run("document.getElementById('count').innerText")
        assert count.startswith("The first 5,000 pictures of 6,000.")
        for _ in range(3):
            shown = browser.run(TILES)
            browser.run("scrollTo(0, document.body.scrollHeight)")
            wait_for(browser, f"{TILES} > {shown}", True)
        browser.run("document.getElementById('filter').value = 'nothing like it'; filter()")
        assert browser.run("document.getElementById('nothing').hidden") is False
