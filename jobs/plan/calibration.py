"""How fast models were measured to be on this machine: `<cache>/calibration.json`.

`sdbatch bench` writes it, one entry for each model and way of running it.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.errors import InputError
from jobs.formatting import reason

FILE = "calibration.json"
MOST_BYTES = 2**20
MOST_ENTRIES = 64

Seconds = Annotated[float, Field(gt=0, lt=1e6, allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=1000)]
Side = Annotated[int, Field(ge=64, le=4096)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SizeSpeed(_Strict):
    """Speed at one size of images, in pixels.

    rows: of a full batch; an image with guidance is two. evaluation_s: of a full batch. decode_s:
    of one image of it. encode_s: of one image's file. alone_evaluation_s, alone_decode_s: for one
    image alone.
    """

    width: Side
    height: Side
    rows: Annotated[int, Field(ge=2, le=1024)]
    evaluation_s: Seconds
    decode_s: Seconds
    encode_s: Seconds
    alone_evaluation_s: Seconds
    alone_decode_s: Seconds

    def images_per_s(self, evaluations: int) -> float:
        """Images a second of one device with full batches, at so many evaluations an image, with
        guidance. Files are encoded beside it.
        """
        images = self.rows // 2
        return images / (evaluations * self.evaluation_s + images * self.decode_s)

    def image_s(self, evaluations: int) -> float:
        """Seconds of one image alone, until it is a file."""
        return evaluations * self.alone_evaluation_s + self.alone_decode_s + self.encode_s


class Speed(_Strict):
    """Speed of a model on one device.

    model: its name. digest: of its weights. device: of `sd_core.device.device_kind`. threads: of
    the CPU that work on one evaluation. measured: when, in ISO 8601.
    """

    model: Name
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    device: Name
    dtype: Name
    execution: Name
    threads: Annotated[int, Field(ge=1, le=10_000)]
    measured: Name
    sizes: Annotated[list[SizeSpeed], Field(max_length=64)]

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """A later measurement of the same takes the place of an earlier one."""
        return self.digest, self.device, self.dtype, self.execution, self.threads


class Calibration(_Strict):
    """All that was measured here, the latest first."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    speeds: Annotated[list[Speed], Field(max_length=MOST_ENTRIES)] = []


def read_calibration(cache: Path) -> Calibration:
    """The measurements of this machine; none where the file is missing or damaged."""
    # RuntimeError: nobody knows ~
    with contextlib.suppress(OSError, ValidationError, RuntimeError):
        return Calibration.model_validate_json(_content(cache.expanduser() / FILE))
    return Calibration()


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MOST_BYTES)


def keep_speed(cache: Path, speed: Speed) -> Path:
    """Writes a measurement beside the others, or over an earlier one of the same; the file.

    Sizes that the earlier one has and this one has not are kept. Raises `InputError` where it
    cannot be written.
    """
    others = []
    sizes = {(one.width, one.height): one for one in speed.sizes}
    for other in read_calibration(cache).speeds:
        if other.key == speed.key:
            sizes = {(one.width, one.height): one for one in other.sizes} | sizes
        else:
            others.append(other)
    merged = speed.model_copy(update={"sizes": list(sizes.values())[-64:]})
    document = Calibration(speeds=[merged, *others][:MOST_ENTRIES])
    try:
        folder = cache.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
            file.write(document.model_dump_json(indent=1) + "\n")
        return Path(file.name).replace(folder / FILE)
    except (OSError, RuntimeError) as error:
        why = reason(error) if isinstance(error, OSError) else error
        raise InputError(f"SDBATCH_CACHE: {cache} cannot be written: {why}") from None
