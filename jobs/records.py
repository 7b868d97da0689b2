"""What a job leaves behind besides images: records, failures, and `done.json`.

Lines are JSON in ASCII, one object each; the same content gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.errors import NotFoundError, StoreError
from jobs.storage import JobKeys, Store
from jobs.storage.keys import content_type

Record = dict[str, Any]
"""A line of `records/<shard>.jsonl`: one image; `worker.record` builds it."""


@dataclass(frozen=True)
class Failure:
    """An image that could not be made: a line of `failures.jsonl`."""

    index: int
    name: str
    prompt: str
    seed: int
    reason: str
    attempts: int = 1


@dataclass
class Totals:
    """What a job's records add up to; fed one record at a time.

    render_s: summed over images, which share the device, so more than the time it took.
    """

    images: int = 0
    bytes_total: int = 0
    evaluations: int = 0
    render_s: float = 0.0
    _digests: list[bytes] = field(default_factory=list, repr=False)

    def add(self, record: Mapping[str, Any]) -> None:
        self.images += 1
        self.bytes_total += record["bytes"]
        self.evaluations += record["evaluations"]
        self.render_s += record.get("timings_s", {}).get("render", 0.0)
        self._digests.append(bytes.fromhex(record["sha256"]))

    @property
    def images_digest(self) -> str:
        """One sha256 for all images, whatever their order and names.

        In a shell: `sha256sum images/* | cut -c1-64 | sort | sha256sum`.
        """
        digest = hashlib.sha256()
        for image in sorted(self._digests):
            digest.update(f"{image.hex()}\n".encode())
        return digest.hexdigest()


def dump_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """JSON lines."""
    return b"".join(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows)


def read_lines(store: Store, key: str) -> list[Record]:
    """The objects of a JSON lines file; none if there is no such file."""
    try:
        data = store.get(key)
    except NotFoundError:
        return []
    rows = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise StoreError(
                f"{store.url(key)}, line {number}: no JSON object; delete the file and run again"
            )
        rows.append(row)
    return rows


def read_records(store: Store, keys: JobKeys) -> Iterator[Record]:
    """All records of a job, shard by shard, so in the order of the plan."""
    for info in store.list(keys.records_prefix):
        yield from read_lines(store, info.key)


def write_failures(store: Store, keys: JobKeys, failures: Iterable[Failure]) -> None:
    """Replace `failures.jsonl`; without failures there is no such file."""
    rows = [asdict(failure) for failure in sorted(failures, key=lambda f: f.index)]
    if not rows:
        store.delete(keys.failures)
        return
    data = dump_lines(rows)
    store.put(keys.failures, data, overwrite=True, content_type=content_type(keys.failures))


def read_failures(store: Store, keys: JobKeys) -> list[Failure]:
    """What `write_failures` wrote, in the order of the plan."""
    return [Failure(**row) for row in read_lines(store, keys.failures)]


def done_document(
    job_id: str,
    totals: Totals,
    *,
    failed: int,
    model: Mapping[str, Any],
    software: Mapping[str, str],
) -> dict[str, Any]:
    """The content of `done.json`. model: as records name it (`ModelInfo.to_json`)."""
    return {
        "job": job_id,
        "images": totals.images,
        "failed": failed,
        "model": dict(model),
        "totals": {
            "bytes": totals.bytes_total,
            "evaluations": totals.evaluations,
            "render_s": round(totals.render_s, 3),
        },
        "digests": {"images": totals.images_digest},
        "software": dict(software),
    }


def write_done(store: Store, keys: JobKeys, document: Mapping[str, Any]) -> None:
    """The last thing a job writes. It replaces an earlier one, of a run that had failures."""
    data = json.dumps(document, indent=2).encode() + b"\n"
    store.put(keys.done, data, overwrite=True, content_type=content_type(keys.done))
