"""`done.json`, the last thing that a job writes, and the totals in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.folder.layout import JobFolder

MAX_DONE_BYTES = 2**20
"""`done.json`, which has totals only."""


@dataclass
class Totals:
    """Sums over a job's records; fed one record at a time.

    render_s: summed over images, which share the device, so more than the time it took.
    """

    images: int = 0
    bytes_total: int = 0
    evaluations: int = 0
    render_s: float = 0.0
    models: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # by digest
    _digests: list[bytes] = field(default_factory=list, repr=False)

    def add(self, record: Mapping[str, Any]) -> None:
        self.images += 1
        self.bytes_total += record["bytes"]
        self.evaluations += record["evaluations"]
        self.render_s += record.get("timings_s", {}).get("render", 0.0)
        self.models.setdefault(record["model"]["digest"], record["model"])
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


def done_document(
    job_id: str,
    totals: Totals,
    *,
    failed: int,
    model: Mapping[str, Any],
    software: Mapping[str, str],
) -> dict[str, Any]:
    """The content of `done.json`. model: as records name it (`ModelInfo.to_json`)."""
    several = [dict(one) for one in totals.models.values()] if len(totals.models) > 1 else []
    return {
        "job": job_id,
        "images": totals.images,
        "failed": failed,
        "model": dict(model),
        **({"models": several} if several else {}),
        "totals": {
            "bytes": totals.bytes_total,
            "evaluations": totals.evaluations,
            "render_s": round(totals.render_s, 3),
        },
        "digests": {"images": totals.images_digest},
        "software": dict(software),
    }


def write_done(folder: JobFolder, document: Mapping[str, Any]) -> None:
    """The last thing a job writes. It replaces an earlier one, of a run that had failures."""
    data = json.dumps(document, indent=2).encode() + b"\n"
    folder.put(folder.keys.done, data, overwrite=True)
