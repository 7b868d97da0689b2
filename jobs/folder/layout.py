"""Names of everything in a job's folder. The layout is drawn in `JobKeys`, and nowhere else.

<job-id>/
  manifest.yaml  job.json  plan/part-00000.jsonl.gz       inputs/<name>       model.json
  manifest.resolved.yaml, the same as manifest.yaml with nothing but this folder
  images/<name>-<spec16>.<ext>                            records/000000.jsonl
  thumbs/<name>-<spec16>.webp, of large images            records.parquet
  index.html               gallery/00000.js, 00000-details.js    grid-0000.jpg
  failures.jsonl           done.json              webdataset/00000.tar, if that is asked for
  saved/<index>-<spec16>.safetensors, while an image is left half-way
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from jobs.errors import StoreError
from jobs.storage.base import ObjectInfo, Store, check_key, is_segment

EXTENSIONS = {"png": "png", "jpeg": "jpg", "webp": "webp"}
"""Image format -> file extension."""

SPEC_DIGITS = 16
"""Hex digits of the spec digest in an image's name: 64 bits, never met twice by chance."""


@dataclass(frozen=True)
class JobKeys:
    """Keys of one job. `job_id` is a single folder name.

    Names are zero-padded, so the order of keys is the order of numbers.
    """

    job_id: str

    def __post_init__(self) -> None:
        if "/" in self.job_id or not is_segment(self.job_id):
            raise StoreError(f"job id {self.job_id!r} is not a folder name")

    def __call__(self, path: str) -> str:
        """The key of a path inside the job's folder, such as a record's `path`."""
        return check_key(f"{self.job_id}/{path}")

    @property
    def prefix(self) -> str:
        """Beginning of every key of the job."""
        return f"{self.job_id}/"

    @property
    def manifest(self) -> str:
        return self("manifest.yaml")

    @property
    def resolved(self) -> str:
        return self("manifest.resolved.yaml")

    @property
    def job(self) -> str:
        return self("job.json")

    def model(self, name: str | None = None) -> str:
        """Name of the model, in a job of several."""
        if name is None:
            return self("model.json")
        digest = hashlib.sha256(name.encode()).hexdigest()  # names have characters that keys lack
        return self(f"models/{digest[:SPEC_DIGITS]}.json")

    @property
    def input_names(self) -> str:
        return self("inputs.json")

    @property
    def failures(self) -> str:
        return self("failures.jsonl")

    @property
    def table(self) -> str:
        """All records as one table."""
        return self("records.parquet")

    def dataset(self, form: str) -> str:
        """Beginning of the keys of a data set."""
        return f"{self.job_id}/{form}/"

    @property
    def index(self) -> str:
        return self("index.html")

    def gallery_index(self, number: int) -> str:
        """A file of the gallery's index."""
        return self(f"gallery/{number:05d}.js")

    def gallery_details(self, number: int) -> str:
        """More about the images of a file of the index."""
        return self(f"gallery/{number:05d}-details.js")

    @property
    def done(self) -> str:
        return self("done.json")

    @property
    def images_prefix(self) -> str:
        return f"{self.job_id}/images/"

    @property
    def inputs_prefix(self) -> str:
        return f"{self.job_id}/inputs/"

    @property
    def records_prefix(self) -> str:
        return f"{self.job_id}/records/"

    def plan_part(self, number: int) -> str:
        return self(f"plan/part-{number:05d}.jsonl.gz")

    def input(self, name: str) -> str:
        return self(f"inputs/{name}")

    def image(self, name: str, spec_digest: str, format: str) -> str:
        """name: the task's, may hold folders; spec_digest: 64 hex digits; format: png, jpeg, webp.

        The digest makes the key a function of what is drawn: other parameters, another file.
        """
        return self(f"images/{name}-{spec_digest[:SPEC_DIGITS]}.{EXTENSIONS[format]}")

    def thumbnail(self, image: str) -> str:
        """Where the thumbnail of a picture is. image: the picture's key."""
        name = self.path(image).removeprefix("images/").rpartition(".")[0]
        return self(f"thumbs/{name}.webp")

    def records(self, shard: int) -> str:
        return self(f"records/{shard:06d}.jsonl")

    @property
    def saved_prefix(self) -> str:
        return f"{self.job_id}/saved/"

    def saved(self, index: int, spec_digest: str) -> str:
        """Where an image was left between two steps."""
        return self(f"saved/{index:06d}-{spec_digest[:SPEC_DIGITS]}.safetensors")

    def sheet(self, number: int) -> str:
        """A contact sheet."""
        return self(f"grid-{number:04d}.jpg")

    def path(self, key: str) -> str:
        """The inverse of calling: where a key lies inside the job's folder."""
        return key.removeprefix(self.prefix)


@dataclass(frozen=True)
class JobFolder:
    """A job's folder in a store. What it holds is the truth about the job."""

    store: Store
    keys: JobKeys

    @property
    def url(self) -> str:
        """The folder's address, for people."""
        return self.store.url(self.keys.job_id)

    def url_of(self, key: str) -> str:
        """An object's address, for people."""
        return self.store.url(key)

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> bool:
        """See `Store.put`."""
        return self.store.put(key, data, overwrite=overwrite)

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        """See `Store.get`."""
        return self.store.get(key, limit_bytes=limit_bytes)

    def head(self, key: str) -> ObjectInfo | None:
        """See `Store.head`."""
        return self.store.head(key)

    def copy(self, source: str, key: str) -> bool:
        """See `Store.copy`."""
        return self.store.copy(source, key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        return self.store.list(prefix)

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        self.store.delete(key)
