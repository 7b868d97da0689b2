"""The gallery page: safe against its own data, and usable in a real browser."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.client.collect import collect
from jobs.client.stars import read_stars
from jobs.folder.layout import JobFolder
from jobs.folder.records import dump_lines
from jobs.report import shards, write_report
from jobs.report.gallery import gallery_page
from jobs.report.shards import IndexShard, Link
from jobs.storage import LocalStore
from jobs.task import Failure
from tests.jobs.report.browser import Browser
from tests.jobs.report.samples import HOSTILE, KEYS, Page, a_record, put_image, wait_for
from tests.servers import wait_for as await_for

TILES = "document.querySelectorAll('.tile').length"
LOADED = "[...document.images].filter(i => i.naturalWidth > 0 && i.closest('.tile')).length"
FOUND = "found.length"
FOCUSED = "document.activeElement.getAttribute('href')?.slice(0, 13)"
COUNT = "document.getElementById('count').innerText"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as one:
        yield one


def a_failure(prompt: str) -> Failure:
    return Failure(3, "000003-s7", prompt, 7, "ArithmeticError: not finite", attempts=2)


def a_page(prompt: str = "a ring", **more: Any) -> Page:
    links = (Link(0, "images/a b%/0.png", prompt),)
    values: dict[str, Any] = {"failures": [a_failure(prompt)], "sheets": ["grid-0000.jpg"], **more}
    index = [IndexShard(0, 2000, 0, 1999, links), IndexShard(1, 5, 2000, 2004)]
    return Page(gallery_page("job", index, 2005, **values))


# The page's text


def test_page_loads_nothing_from_elsewhere():
    page = a_page()
    text = gallery_page("job", [], 1, [], ["grid-0000.jpg"])
    for tag, attributes in page.elements:
        for name in ("src", "srcset", "action", "data", "poster"):
            assert not attributes.get(name), (tag, name)
    hrefs = [attributes["href"] for _, attributes in page.elements if attributes.get("href")]
    assert hrefs == [
        *("images/a%20b%25/0.png", "images/", "records/", "grid-0000.jpg"),
        *("gallery/00000.js", "gallery/00001.js"),
    ]
    for word in ("http:", "https:", "@import", "url("):
        assert word not in text


def test_policy_allows_exactly_this_script_and_style_and_files_that_it_loads():
    meta = [m for m in a_page().tags("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    policy = dict(part.split(" ", 1) for part in (meta[0]["content"] or "").split("; "))
    assert policy["default-src"] == "'none'"
    assert re.fullmatch(r"'sha256-[^ ']+' 'strict-dynamic'", policy["script-src"])
    assert re.fullmatch(r"'sha256-[^ ']+'", policy["style-src"])
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["trusted-types"] == "shards"


@pytest.mark.parametrize("prompt", HOSTILE)
def test_prompts_stay_text(prompt: str):
    page = a_page(prompt)
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in a_page().elements]
    assert page.data["failures"][0]["prompt"] == prompt


def test_a_title_stays_text():
    page = Page(gallery_page("<b>{{data}}</b>", [], 0, [], []))
    assert page.tags("b") == []
    assert page.texts["h1"] == "<b>{{data}}</b>"
    assert page.data["job"] == "<b>{{data}}</b>"


# In a real browser


def show(browser: Browser, store: LocalStore, records, failures=(), *, at: str = "") -> None:
    """Opens the gallery of these records."""
    write_report(JobFolder(store, KEYS), records, failures)
    browser.messages.clear()
    browser.open("about:blank")
    browser.open(Path(store.url(KEYS.index)).as_uri() + at)
    wait_for(browser, "loading.done", True)


def choose(browser: Browser, field: str, value: str) -> None:
    """Ticks a value of a filter, or unticks it."""
    browser.run(
        f"""[...document.querySelectorAll(`[data-field="{field}"] label`)]
            .find((one) => one.querySelector(".value").textContent === {value!r})
            .querySelector("input").click()"""
    )


def counts(browser: Browser, field: str) -> dict[str, str]:
    """Values of a filter and their counts."""
    return browser.run(
        f"""Object.fromEntries([...document.querySelectorAll(`[data-field="{field}"] label`)]
            .map((one) => [one.querySelector(".value").textContent,
                           one.querySelector(".number").textContent]))"""
    )


def test_gallery_in_a_browser(browser: Browser, store: LocalStore):
    odd = "folder é/#1? 100% \"'&"
    records = [
        put_image(store, 0, prompt=HOSTILE[0]),
        put_image(store, 1, prompt=HOSTILE[1], name=odd),
        put_image(store, 2, prompt="a green STAR", seed=2**64 - 1, negative="blurry"),
        put_image(store, 3, prompt="a green ring", guidance=3.0),
    ]
    show(browser, store, records, [a_failure("<b>x</b>")])
    wait_for(browser, LOADED, 4)
    assert browser.run("document.title") == "shapes-1a2b"
    assert "<b>x</b>" in browser.run("document.querySelector('#failures li').textContent")

    browser.press("/")
    browser.type("green star")
    wait_for(browser, TILES, 1)
    assert browser.run(COUNT) == "1 of 4 pictures."
    browser.run("clearFilters()")
    wait_for(browser, TILES, 4)

    browser.run("document.querySelectorAll('.tile')[1].focus()")
    browser.press("Enter")
    wait_for(browser, "document.getElementById('viewer').open", True)
    assert browser.run("document.getElementById('prompt').innerText") == HOSTILE[1]
    browser.press("ArrowRight")
    assert browser.run("document.getElementById('position').innerText") == "3 of 4"
    wait_for(browser, "document.querySelector('dl').innerText.includes('SHA-256')", True)
    assert "18446744073709551615" in browser.run("document.querySelector('dl').innerText")
    entry = yaml.safe_load(browser.run("entryOf(current)"))
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
    wait_for(browser, FOCUSED, "images/000002")
    assert browser.run("document.title") == "shapes-1a2b"
    assert browser.messages == []

    show(browser, store, records, at="?again#3")
    wait_for(browser, "document.getElementById('prompt').innerText", "a green ring")
    assert browser.run("document.getElementById('position').innerText") == "4 of 4"
    assert browser.messages == []


def test_gallery_from_a_server(browser: Browser, store: LocalStore):
    write_report(JobFolder(store, KEYS), [put_image(store, index) for index in range(3)])
    handler = partial(QuietHandler, directory=str(store.root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.messages.clear()
        browser.open(f"http://127.0.0.1:{server.server_port}/{KEYS.index}#2")
        wait_for(browser, LOADED, 3)
        wait_for(browser, "document.querySelector('dl').innerText.includes('SHA-256')", True)
        # Browsers ask for an icon by themselves, which is not there.
        assert [message for message in browser.messages if "404" not in message] == []
        browser.open("about:blank")
        server.shutdown()


def test_hostile_texts_run_nothing_wherever_they_stand(browser: Browser, store: LocalStore):
    attack = HOSTILE[1]
    records = [
        a_record(index)
        | {
            "prompt": text,
            "negative": text,
            "sampler": text,
            "meta": {text: text, "__proto__": text},
        }
        | {"device": text, "init_image_name": text, "name": text}
        for index, text in enumerate((*HOSTILE, attack + "'); document.title='taken'; ('"))
    ]
    show(browser, store, records, [a_failure(attack)], at="#0")
    wait_for(browser, "document.getElementById('viewer').open", True)
    for _ in records:
        browser.press("ArrowRight")
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    wait_for(browser, "valueOf(1, 'meta.__proto__')", attack)
    assert browser.run("document.title") == "shapes-1a2b"
    assert browser.run("document.querySelectorAll('img[onerror]').length") == 0
    # Pictures are not there; that is all that there is to say.
    assert [m for m in browser.messages if "ERR_FILE_NOT_FOUND" not in m] == []


def test_the_browser_itself_refuses_html_and_scripts_from_elsewhere(
    browser: Browser, store: LocalStore
):
    show(browser, store, [put_image(store)])
    refused = """(() => { try { %s; return "ran"; } catch (error) { return error.name; } })()"""
    assert browser.run(refused % "document.body.innerHTML = '<b>x</b>'") == "TypeError"
    assert browser.run(refused % "scriptTypes.createScriptURL('images/x.js')") == "TypeError"
    assert (
        browser.run(refused % "scriptTypes.createScriptURL('//x/gallery/00000.js')") == "TypeError"
    )
    # A script that stands in the page as markup does not run, though it is beside the page.
    (store.root / KEYS.job_id / "images/x.js").write_text("document.title = 'taken'")
    page = store.root / KEYS.index
    page.write_text(
        page.read_text().replace("</main>", '<script src="images/x.js"></script></main>')
    )
    browser.open(page.as_uri() + "?marked")
    wait_for(browser, "loading.done", True)
    assert browser.run("document.title") == "shapes-1a2b"
    assert any("Content Security Policy" in message for message in browser.messages)


def test_filters_count_what_each_value_would_leave(browser: Browser, store: LocalStore):
    records = [
        a_record(
            index,
            sampler="ddim" if index % 2 else "plms",
            steps=20 + 5 * (index % 3),
            seed=1000 + index,
            **({"meta": (("sku", f"A-{index % 4}"),)} if index < 8 else {}),
        )
        for index in range(24)
    ]
    show(browser, store, records)
    assert counts(browser, "sampler") == {"plms": "12", "ddim": "12"}
    assert counts(browser, "meta.sku") == {
        **{f"A-{n}": "2" for n in range(4)},
        "none": "16",
    }
    choose(browser, "sampler", "ddim")
    wait_for(browser, FOUND, 12)
    assert counts(browser, "sampler") == {"plms": "12", "ddim": "12"}  # as if it were not chosen
    assert counts(browser, "meta.sku") == {
        "A-0": "0",
        "A-1": "2",
        "A-2": "0",
        "A-3": "2",
        "none": "8",
    }
    choose(browser, "meta.sku", "A-1")
    wait_for(browser, FOUND, 2)
    choose(browser, "meta.sku", "none")
    wait_for(browser, FOUND, 10)
    assert browser.run("document.getElementById('active').textContent") == "2"
    browser.run("document.getElementById('clear').click()")
    wait_for(browser, FOUND, 24)
    # Numbers with many values are a range; none of them, all of the rest.
    browser.run(
        """(() => {
            const from = document.querySelector('[data-field="seed"] input');
            from.value = "1020";
            from.dispatchEvent(new Event("input"));
        })()"""
    )
    wait_for(browser, FOUND, 4)
    assert browser.run("[...found].map((row) => table.indices[row])") == [20, 21, 22, 23]
    # What is the same in all is no filter.
    assert browser.run("document.querySelector('[data-field=\"guidance\"]')") is None


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("RING", [0, 2]),
        ("ring steps", [0, 2]),
        ("steps 30", [1, 3]),
        ("blurry", [1]),
        ("sku a-7", [3]),
        ("ring 30", []),
        ("cpu", []),  # of no tile
    ],
)
def test_search_is_over_all_that_a_tile_says(browser, store, words, wanted):
    records = [
        a_record(
            index,
            seed=9,
            prompt="a Red ring" if index % 2 == 0 else "a star",
            negative="blurry" if index == 1 else "",
            steps=20 + 10 * (index % 2),
            **({"meta": (("sku", "A-7"),)} if index == 3 else {}),
        )
        for index in range(4)
    ]
    show(browser, store, records)
    browser.run(f"document.getElementById('filter').value = {words!r}; filter()")
    wait_for(browser, "[...found]", wanted)
    assert browser.run("document.getElementById('nothing').hidden") is bool(wanted)


def test_orders(browser: Browser, store: LocalStore):
    seeds = [7, 2**64 - 1, 2**63, 7, 10]
    sizes = [30, 9, 100, 4, 5]
    records = [
        a_record(index, seed=seed, prompt="BACD"[index % 4]) | {"bytes": size}
        for index, (seed, size) in enumerate(zip(seeds, sizes, strict=True))
    ]
    del records[3]["timings_s"]
    show(browser, store, records)
    orders = browser.run("[...document.getElementById('order').options].map((one) => one.value)")
    assert orders == ["index", "prompt", "seed", "bytes", "render_s"]

    def order(field: str, *, reverse: bool = False) -> list[int]:
        browser.run(f"query.order = {field!r}; query.reverse = {str(reverse).lower()}; answer()")
        return browser.run("[...found]")

    assert order("index", reverse=True) == [4, 3, 2, 1, 0]
    assert order("seed") == [0, 3, 4, 2, 1]
    assert order("seed", reverse=True) == [1, 2, 4, 0, 3]
    assert order("bytes") == [3, 4, 1, 0, 2]
    assert order("prompt") == [1, 0, 4, 2, 3]
    assert order("render_s", reverse=True) == [0, 1, 2, 4, 3]  # last where there is none


def test_keys_move_over_a_long_list_of_which_a_few_are_tiles(
    browser: Browser, store: LocalStore, monkeypatch
):
    monkeypatch.setattr(shards, "SHARD_SIZE", 2000)
    show(browser, store, [a_record(index) for index in range(5000)])
    assert 0 < browser.run(TILES) < 100
    columns = browser.run("grid.columns")
    for key, at in [
        ("End", 4999),
        ("ArrowLeft", 4998),
        ("ArrowUp", 4998 - columns),
        ("Home", 0),
        ("ArrowRight", 1),
        ("ArrowDown", 1 + columns),
    ]:
        browser.press(key)
        wait_for(browser, FOCUSED, f"images/{at:06d}")
        box = browser.run(
            "(({top, bottom}) => [top, bottom])(document.activeElement.getBoundingClientRect())"
        )
        assert 0 <= box[0] < box[1] <= browser.run("innerHeight")
    # Keys in the search move its cursor alone.
    browser.press("/")
    browser.press("End")
    wait_for(browser, "document.activeElement.id", "filter")
    # The bar stands where the list does.
    browser.run("scrollTo(0, document.body.scrollHeight / 2)")
    wait_for(browser, "[...tiles.keys()].some((row) => Math.abs(row - 2500) < 100)", True)
    assert 0 < browser.run(TILES) < 100


def test_a_list_that_is_higher_than_browsers_have_room_for(browser: Browser, store: LocalStore):
    show(browser, store, [a_record(index) for index in range(5000)])
    browser.run("byId('grid').style.setProperty('--words', '100000px'); measure(); showTiles()")
    height = browser.run("document.body.scrollHeight")
    assert 8e6 <= height < 8.1e6
    browser.run(f"scrollTo(0, {height} / 2)")
    wait_for(browser, "[...tiles.keys()].some((row) => Math.abs(row - 2500) < 100)", True)
    before = browser.run("tiles.values().next().value.getBoundingClientRect().top")
    browser.run("scrollBy(0, 50)")  # slow scrolling is by pixels, not by shares
    wait_for(
        browser,
        "Math.round(tiles.values().next().value.getBoundingClientRect().top)",
        round(before - 50),
    )
    browser.run(f"scrollTo(0, {height})")
    wait_for(browser, "tiles.has(4999)", True)
    browser.run("scrollTo(0, 0)")
    wait_for(browser, "tiles.has(0)", True)


def test_a_link_to_a_picture_of_a_later_file(browser: Browser, store: LocalStore, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_SIZE", 4)
    show(browser, store, [a_record(index, prompt=f"p{index}") for index in range(20)], at="#14")
    wait_for(browser, "document.getElementById('prompt').innerText", "p14")
    assert browser.run("table.parts[0].number") == 3  # which was loaded first
    assert browser.run("document.getElementById('position').innerText") == "15 of 20"
    wait_for(browser, "document.querySelector('dl').innerText.includes('000014-s56')", True)
    browser.press("Escape")
    assert browser.run("[...found].map((row) => table.indices[row])") == list(range(20))


def test_a_job_with_more_pictures_than_a_gallery(browser: Browser, store: LocalStore, monkeypatch):
    monkeypatch.setattr("jobs.report.GALLERY_LIMIT", 5)
    show(browser, store, [a_record(index) for index in range(8)])
    said = "The first 5 pictures of 8. All of them are in the images folder."
    wait_for(browser, COUNT, said)
    assert browser.run(TILES) == 5


def test_a_file_of_the_index_that_is_gone_or_damaged(
    browser: Browser, store: LocalStore, monkeypatch
):
    monkeypatch.setattr(shards, "SHARD_SIZE", 4)
    records = [a_record(index) for index in range(12)]
    write_report(JobFolder(store, KEYS), records)
    store.delete(KEYS.gallery_index(0))
    store.put(KEYS.gallery_index(1), b'indexShard(1,\'{"images":', overwrite=True)
    browser.open("about:blank")
    browser.open(Path(store.url(KEYS.index)).as_uri())
    wait_for(browser, "loading.done", True)
    assert browser.run(FOUND) == 4
    assert "2 files of the index cannot be read" in browser.run(COUNT)


def test_a_thumbnail_stands_for_its_picture_where_it_is_there(browser: Browser, store: LocalStore):
    records = [put_image(store, 0), put_image(store, 1), put_image(store, 2), a_record(3)]
    small = KEYS("thumbs/000000-s42-0123456789abcdef.webp")
    store.put(small, store.get(KEYS(records[0]["path"])))
    records[0]["thumbnail"] = KEYS.path(small)
    records[1]["thumbnail"] = "thumbs/gone.webp"
    show(browser, store, records)
    wait_for(browser, LOADED, 3)
    sources = browser.run(
        "[...document.querySelectorAll('.tile img')].map((one) => one.getAttribute('src'))"
    )
    assert sources == ["thumbs/000000-s42-0123456789abcdef.webp", *(r["path"] for r in records[1:])]
    wait_for(browser, "document.querySelectorAll('.missing').length", 1)
    browser.run("open(0)")
    assert (
        browser.run("document.getElementById('picture').getAttribute('src')") == records[0]["path"]
    )


PRESSED = "[...document.querySelectorAll('.star')].map((one) => one.ariaPressed)"


def test_stars_are_kept_counted_and_saved(browser: Browser, store: LocalStore):
    records = [put_image(store, index) for index in range(4)]
    show(browser, store, records)
    browser.run("localStorage.clear()")
    show(browser, store, records)
    assert browser.run("byId('save-stars').hidden") is True
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    browser.press("s")
    browser.run("document.querySelectorAll('.star')[3].click()")
    browser.run("open(0)")
    browser.press("s")
    browser.press("Escape")
    wait_for(browser, FOCUSED, "images/000000")
    assert browser.run(PRESSED) == ["true", "true", "false", "true"]
    assert counts(browser, "starred") == {"yes": "3", "none": "1"}
    browser.press("s")  # the viewer's picture has the focus: its star is taken back
    assert browser.run(PRESSED) == ["false", "true", "false", "true"]
    assert browser.run("starList()") == "\n".join(
        ("# sdbatch stars of shapes-1a2b", records[1]["path"], records[3]["path"], "")
    )
    choose(browser, "starred", "yes")
    wait_for(browser, FOUND, 2)
    # They are there when the page is opened again, those of another job are not.
    show(browser, store, records)
    wait_for(browser, PRESSED, ["false", "true", "false", "true"])
    browser.run("localStorage.setItem(STARS_KEY, localStorage.getItem(STARS_KEY) + '!')")
    show(browser, store, records)
    wait_for(browser, PRESSED, ["false"] * 4)
    browser.run("localStorage.clear()")


def test_stars_are_saved_as_a_file_that_collect_takes(
    browser: Browser, store: LocalStore, tmp_path: Path
):
    records = [put_image(store, index) for index in range(4)]
    store.put(KEYS.records(0), dump_lines(records))
    show(browser, store, records)
    browser.save_downloads(tmp_path / "saved")
    browser.run("toggleStar(2); byId('save-stars').click()")
    saved = tmp_path / "saved/stars.txt"
    await_for(saved.exists, "the list of stars")
    browser.run("localStorage.clear()")
    stars = read_stars(saved, KEYS.job_id)
    collect(JobFolder(store, KEYS), tmp_path / "best", stars=stars)
    found = [path.name for path in (tmp_path / "best").rglob("*") if path.is_file()]
    assert found == [Path(records[2]["path"]).name]


def test_stars_where_the_browser_keeps_nothing(browser: Browser, store: LocalStore):
    show(browser, store, [put_image(store)])
    browser.run("""Object.defineProperty(window, "localStorage", {
        get() { throw new DOMException("forbidden", "SecurityError"); } }); 0""")
    assert browser.run("storedStars()") == []
    browser.run("toggleStar(0)")
    assert browser.run(PRESSED) == ["true"]
    assert "only until the page is closed" in browser.run("document.body.innerText")


def test_two_pictures_are_compared(browser: Browser, store: LocalStore):
    records = [
        put_image(store, 0, guidance=5.0, seed=1),
        put_image(store, 1, guidance=9.0, seed=1, prompt=HOSTILE[1]),
        put_image(store, 2, guidance=5.0, seed=1, width=128),
    ]
    show(browser, store, records)
    table = (
        "[...document.querySelectorAll('#differences tr')].map((row) => "
        "[...row.children].map((one) => one.textContent))"
    )
    browser.press("ArrowRight")
    browser.press("a")
    assert "compare with 0" in browser.run("byId('comparing').innerText")
    browser.run("document.querySelectorAll('.tile')[1].click()")
    assert browser.run("byId('compare').open") is True
    assert browser.run("byId('comparing').hidden") is True
    differ = [["Prompt", "a red circle", HOSTILE[1]], ["Guidance", "5", "9"]]
    wait_for(browser, f"{table}.slice(0, 2)", differ)
    names = {row[0] for row in browser.run(table)}
    assert not names & {"Seed", "Sampler", "File", "Name", "Index", "SHA-256"}
    browser.run("byId('swap').click()")
    wait_for(browser, f"{table}[1]", ["Guidance", "9", "5"])
    # Upon one another, as far as the slider says.
    browser.run("byId('upon').click()")
    assert browser.run("document.activeElement.id") == "curtain"
    browser.press("Home")
    wait_for(browser, "byId('pair').style.getPropertyValue('--cut')", "0%")
    places = browser.run(
        "['a', 'b'].map((one) => byId(`picture-${one}`).getBoundingClientRect().x)"
    )
    assert places[0] == places[1]
    browser.run("byId('beside').click()")
    places = browser.run(
        "['a', 'b'].map((one) => byId(`picture-${one}`).getBoundingClientRect().x)"
    )
    assert places[0] < places[1]
    browser.press("Escape")
    wait_for(browser, "byId('compare').open", False)
    # From the viewer, and given up.
    browser.run("open(2)")
    browser.run("byId('compare-with').click()")
    wait_for(browser, "[byId('viewer').open, byId('comparing').hidden]", [False, False])
    browser.press("Escape")
    wait_for(browser, "byId('comparing').hidden", True)
    browser.run("compare(0, 2)")
    wait_for(
        browser,
        table,
        [["Bytes", *(str(records[n]["bytes"]) for n in (0, 2))], ["Width", "64", "128"]],
    )
    browser.run("byId('compare').close()")


def test_pictures_without_a_script(store: LocalStore, monkeypatch):
    monkeypatch.setattr(shards, "MOST_LINKS", 3)
    records = [put_image(store, index, prompt=HOSTILE[index % 4]) for index in range(5)]
    write_report(JobFolder(store, KEYS), records)
    with Browser() as plain:
        plain.without_scripts()
        plain.open(Path(store.url(KEYS.index)).as_uri())
        text = plain.run("document.querySelector('main').innerText")
        assert "The first 3 of 5 pictures" in text
        assert HOSTILE[1] in text
        links = plain.run(
            "[...document.querySelectorAll('.plain a')].map((one) => one.getAttribute('href'))"
        )
        assert links == [*(r["path"] for r in records[:3]), "images/", "records/", "grid-0000.jpg"]


@pytest.mark.parametrize("width", [400, 1300, 2560])
def test_nothing_is_wider_than_the_window(browser: Browser, store: LocalStore, width: int):
    long = "x" * 300
    records = [a_record(index, prompt=long, meta=((long[:40], long),)) for index in range(30)]
    records[0]["sampler"] = long
    browser.resize(width, 900)
    show(browser, store, records, [a_failure(long)])
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.body.classList.contains('filtering')") is (width > 899)
    browser.run("showPanel(true); open(0)")
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.resize(1280, 900)
