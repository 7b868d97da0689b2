"""Records of a job's images, and its failures.

Lines are JSON in ASCII, one object each; the same content gives the same bytes.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from jobs.errors import DamagedError, NotFoundError
from jobs.folder.layout import JobFolder
from jobs.formatting import counted
from jobs.storage import Store
from jobs.storage.base import is_segment
from jobs.task import Failure

log = logging.getLogger(__name__)

MAX_RECORDS_BYTES = 32 * 2**20
"""The records of one shard: 64 images with the longest prompts, twice over."""

MAX_FAILURES_BYTES = 2 * 2**30
"""A line for each image of the largest job."""


MAX_LINE_BYTES = 2**20
"""A record or a failure, with the longest prompts."""

Record = dict[str, Any]
"""A line of `records/<shard>.jsonl`: one image; `worker.output.record` builds it."""


def dump_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """JSON lines."""
    return b"".join(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows)


WHOLE = (
    *("index", "path", "sha256", "bytes", "prompt", "seed", "width", "height"),
    *("evaluations", "model"),
)
"""Fields of a record that totals, gallery and contact sheets need."""


def read_lines(store: Store, key: str, *, skip_damaged: bool = False) -> list[Record]:
    """The records of a shard; none if there is no such file.

    skip_damaged: leave out what would raise, with a warning: an image without a record gets a new
    one. Raises `DamagedError`, with the line, if one has no index or path, or a field is not of its
    type, and `StoreError`.
    """
    rows = _rows(store, key, flaw_of_record, MAX_RECORDS_BYTES)
    return list(_valid(rows, skip_damaged=skip_damaged))


def read_records(
    folder: JobFolder,
    *,
    needs: Collection[str] = (),
    images: int | None = None,
    shards: int | None = None,
    skip_damaged: bool = False,
) -> Iterator[Record]:
    """All records of a job, shard by shard, so in the order of the plan.

    needs: fields that each must have. images: how many the job has. shards: how many it has, where
    that is known: then the store is not asked for a list, which may lag behind. Raises like
    `read_lines`, and if one lacks a field or is of no image of the job.
    """

    def flaw_of(row: Record) -> str | None:
        lacking = next((name for name in needs if name not in row), None)
        if lacking is not None:
            return f"{lacking} is missing"
        if images is not None and row["index"] >= images:
            return f"index {row['index']} of a job of {counted(images, 'image')}"
        return None

    if shards is None:
        files = (info.key for info in folder.list(folder.keys.records_prefix))
    else:
        files = (folder.keys.records(shard) for shard in range(shards))
    for key in files:
        rows = _rows(
            folder.store, key, lambda row: flaw_of_record(row) or flaw_of(row), MAX_RECORDS_BYTES
        )
        yield from _valid(rows, skip_damaged=skip_damaged)


def _rows(
    store: Store, key: str, flaw_of: Callable[[Record], str | None], limit_bytes: int
) -> Iterator[Record | DamagedError]:
    """The objects of a JSON lines file; in place of one that is damaged, or of all, an error."""
    try:
        data = store.get(key, limit_bytes=limit_bytes)
    except NotFoundError:
        return
    except DamagedError as error:
        yield error
        return
    for number, line in enumerate(io.BytesIO(data), 1):
        if len(line) > MAX_LINE_BYTES:
            yield _flawed(store, key, number, f"longer than {MAX_LINE_BYTES:,} bytes")
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        flaw = flaw_of(row) if isinstance(row, dict) else "no JSON object"
        yield row if flaw is None else _flawed(store, key, number, flaw)


def _valid(
    rows: Iterable[Record | DamagedError], *, skip_damaged: bool = False
) -> Iterator[Record]:
    """Raises the errors among the rows, or logs them."""
    for row in rows:
        if not isinstance(row, DamagedError):
            yield row
        elif skip_damaged:
            log.warning("left out: %s", row)
        else:
            raise row


def _flawed(store: Store, key: str, number: int, flaw: str) -> DamagedError:
    return DamagedError(f"{store.url(key)}, line {number}: {flaw}; delete the file and run again")


_SHA256 = re.compile("[0-9a-f]{64}")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def is_image_path(value: object) -> bool:
    """True for the path of an image in a job's folder."""
    return _is_path_in("images/", value)


def _is_thumbnail_path(value: object) -> bool:
    return _is_path_in("thumbs/", value)


def _is_path_in(folder: str, value: object) -> bool:
    return (
        isinstance(value, str)
        and value.startswith(folder)
        and all(is_segment(part) for part in value.split("/"))
    )


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_model(value: object) -> bool:
    return isinstance(value, dict) and all(_is_text(value.get(n)) for n in ("name", "digest"))


def _are_timings(value: object) -> bool:
    return isinstance(value, dict) and all(type(s) in (int, float) for s in value.values())


_RECORD: Mapping[str, Callable[[object], bool]] = {
    "index": _is_count,
    "path": is_image_path,
    "thumbnail": _is_thumbnail_path,
    "sha256": _is_sha256,
    "spec": _is_sha256,
    "bytes": _is_count,
    "quality": _is_count,
    "prompt": _is_text,
    "seed": _is_count,
    "width": _is_size,
    "height": _is_size,
    "evaluations": _is_count,
    "model": _is_model,
    "timings_s": _are_timings,
}

_FAILURE: Mapping[str, Callable[[object], bool]] = {
    "index": _is_count,
    "name": _is_text,
    "prompt": _is_text,
    "seed": _is_count,
    "reason": _is_text,
    "attempts": _is_count,
}


def flaw_of_record(row: Record) -> str | None:
    """Flaw of a record, in the fields that are read; None if there is none."""
    for name, is_right in _RECORD.items():
        if name not in row:
            if name in ("index", "path"):
                return f"{name} is missing"
        elif not is_right(row[name]):
            return f"{name} is {row[name]!r:.80}"
    return None


def _flaw_of_failure(row: Record) -> str | None:
    for name, is_right in _FAILURE.items():
        if name not in row:
            return f"{name} is missing"
        if not is_right(row[name]):
            return f"{name} is {row[name]!r:.80}"
    return None


def write_failures(folder: JobFolder, failures: Iterable[Failure]) -> None:
    """Replace `failures.jsonl`; without failures there is no such file."""
    rows = [asdict(failure) for failure in sorted(failures, key=lambda f: f.index)]
    if not rows:
        folder.delete(folder.keys.failures)
        return
    data = dump_lines(rows)
    folder.put(folder.keys.failures, data, overwrite=True)


def read_failures(folder: JobFolder) -> list[Failure]:
    """Failures as `write_failures` wrote them, in the order of the plan. Raises `StoreError`."""
    rows = _valid(_rows(folder.store, folder.keys.failures, _flaw_of_failure, MAX_FAILURES_BYTES))
    return [Failure(**{name: row[name] for name in _FAILURE}) for row in rows]
