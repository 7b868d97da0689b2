"""The gallery's index: what is to be known of every image, in files of a few thousand images.

A page that is opened as a file may not fetch others, but may run scripts. So a file of the index is
a script of one call with one text, which is JSON in ASCII: it holds no other code than that, and
the page reads the text as data. Fields are stored one by one, and a value that many images have is
said once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.folder.layout import JobFolder
from jobs.folder.records import Record
from jobs.report.fields import DETAIL_LABELS, Row, Value, detail_row, index_row, keep_labels

SHARD_SIZE = 2_000
"""Images of one file of the index: those whose indices begin with the same thousands."""

MOST_OPEN = 8
"""Files that are gathered at the same time: records come in the order of the plan, or nearly so."""

FIRST_EXTRA = 50_000
"""Numbers from here on are of files with images that came too late for their own."""

MOST_LINKS = 200
"""Pictures that a page links to where its script does not run."""

_LINK_CHARS = 120


@dataclass(frozen=True)
class Link:
    """A picture as the page without its script shows it. path: in the job's folder."""

    index: int
    path: str
    prompt: str


@dataclass(frozen=True)
class IndexShard:
    """A file of the index. first, last: the lowest and the highest index of its images.

    links: to its first images, in the file that comes first.
    """

    number: int
    images: int
    first: int
    last: int
    links: tuple[Link, ...] = ()


class ChangedFiles:
    """Puts files into a job's folder, those alone that are not as they were put before."""

    def __init__(self, folder: JobFolder) -> None:
        self._folder = folder
        self._digests: dict[str, bytes] = {}

    def put(self, key: str, data: bytes) -> str:
        """Replaces a file; returns its path in the folder. Raises `StoreError`."""
        digest = hashlib.sha256(data).digest()
        if self._digests.get(key) != digest:
            self._folder.put(key, data, overwrite=True)
            self._digests[key] = digest
        return self._folder.keys.path(key)


class IndexWriter:
    """Takes records in any order and writes the index, a file as soon as it seems complete."""

    def __init__(self, folder: JobFolder, files: ChangedFiles) -> None:
        self._folder = folder
        self._files = files
        self._open: dict[int, dict[int, Record]] = {}  # the last one is that of the last record
        self._shards: dict[int, IndexShard] = {}

    def add(self, record: Record) -> None:
        """A record; another one of the same image is left out. Raises `StoreError`."""
        number = record["index"] // SHARD_SIZE
        records = self._open[number] = self._open.pop(number, {})
        records.setdefault(record["index"], record)
        if len(self._open) > MOST_OPEN:
            self._write(next(iter(self._open)))

    def finish(self) -> list[IndexShard]:
        """All files, in the order of their images. Raises `StoreError`."""
        for number in sorted(self._open):
            self._write(number)
        return sorted(self._shards.values(), key=lambda shard: (shard.first, shard.number))

    def _write(self, number: int) -> None:
        records = self._open.pop(number)
        if number in self._shards:
            number = FIRST_EXTRA + len(self._shards)
        links = 0 if self._shards else MOST_LINKS
        written = write_shard(self._folder, number, records.values(), self._files, links=links)
        self._shards[number] = written


def write_shard(
    folder: JobFolder,
    number: int,
    records: Iterable[Record],
    files: ChangedFiles,
    *,
    links: int = 0,
) -> IndexShard:
    """Writes a file of the index and that of its details. Raises `StoreError`.

    records: one at least, each of another image. links: to so many of its images, at most.
    """
    ordered = sorted(records, key=lambda record: record["index"])
    rows, details = list(map(index_row, ordered)), list(map(detail_row, ordered))
    keep_labels(rows, details)
    names = dict.fromkeys(name for row in rows for name in row)
    index = script("indexShard", number, _table(rows, names))
    more = script("detailShard", number, _table(details, DETAIL_LABELS))
    files.put(folder.keys.gallery_details(number), more)
    files.put(folder.keys.gallery_index(number), index)
    first = tuple(
        Link(record["index"], record["path"], record["prompt"][:_LINK_CHARS])
        for record in ordered[:links]
    )
    return IndexShard(number, len(rows), ordered[0]["index"], ordered[-1]["index"], first)


def script(function: str, number: int, data: Any) -> bytes:
    """A call of a function of the page with the file's number and its JSON, as one text."""
    text = embeddable_json(data).replace("'", "\\u0027").replace("\\", "\\\\")
    return f"{function}({number},'{text}');\n".encode("ascii")


def embeddable_json(value: Any) -> str:
    """ASCII JSON that cannot end the script element it stands in, nor begin a comment there."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _table(rows: Sequence[Row], names: Iterable[str]) -> dict[str, Any]:
    fields = {name: _column([row.get(name) for row in rows]) for name in names}
    filled = {name: column for name, column in fields.items() if column["values"]}
    return {"images": len(rows), "fields": filled}


def _column(values: Sequence[Value | None]) -> Mapping[str, Any]:
    """Values of one field: the different ones, and for each image the place of its own among them,
    -1 where it has none. Without these places all images have the one value, or each its own.
    """
    places: dict[tuple[bool, Value], int] = {}
    codes = []
    for value in values:
        # True is 1 to a dictionary, but not to a reader.
        key = None if value is None else (value is True or value is False, value)
        codes.append(-1 if key is None else places.setdefault(key, len(places)))
    different = [value for _, value in places]
    is_plain = -1 not in codes and len(different) in (1, len(codes))
    return {"values": different} if is_plain else {"values": different, "codes": codes}
