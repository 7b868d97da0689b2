"""Records, pictures and a reader of pages, for tests of reports."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from typing import Any

from jobs.folder.layout import JobKeys
from jobs.storage import LocalStore
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


_SCRIPT = re.compile(r"(indexShard|detailShard)\((\d+),'((?:[^'\\]|\\\\)*)'\);\n", re.ASCII)


def read_script(data: bytes) -> dict[str, Any]:
    """The data of a file of the index, which holds nothing else."""
    match = _SCRIPT.fullmatch(data.decode("ascii"))
    assert match, data[:200]
    return json.loads(match[3].replace("\\\\", "\\"))


def images_of(store: LocalStore, *numbers: int) -> list[dict[str, Any]]:
    """Fields of all images in these files of the index, with their details."""
    images = []
    for number in numbers or (0,):
        index = read_script(store.get(KEYS.gallery_index(number)))
        details = read_script(store.get(KEYS.gallery_details(number)))
        assert index["images"] == details["images"]
        for place in range(index["images"]):
            columns = {**index["fields"], **details["fields"]}
            found = {name: _value(column, place) for name, column in columns.items()}
            images.append({name: value for name, value in found.items() if value is not None})
    return images


def _value(column: dict[str, Any], place: int) -> Any:
    values, codes = column["values"], column.get("codes")
    if codes is None:
        return values[0 if len(values) == 1 else place]
    return None if codes[place] < 0 else values[codes[place]]


def wait_for(browser: Browser, script: str, wanted: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (found := browser.run(script)) != wanted:
        assert time.monotonic() < deadline, f"{script} is {found!r}, not {wanted!r}"
        time.sleep(0.02)
