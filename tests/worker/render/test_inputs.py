"""A worker's inputs: read by the rules of submit, and trouble with one is trouble of its images."""

from __future__ import annotations

import hashlib
import io
import struct

import numpy as np
import pytest
from PIL import Image

from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.plan import read_plan
from jobs.folder.records import read_records
from jobs.storage import LocalStore
from tests.jobs.pictures.files_by_hand import ORIENTATION, long, png, short, tiff, with_exif
from tests.worker.serve.services import SHARD, Service
from worker.render.inputs import Inputs

KEYS = JobKeys("job")


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "out")


def named(data: bytes, extension: str = "png") -> str:
    return f"{hashlib.sha256(data).hexdigest()}.{extension}"


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n{} loop\n"
LARGE = png((13_000, 13_000), 1, 0, bytes(13_000 * (1 + 13_000 // 8)))


@pytest.mark.parametrize(
    ("data", "said"),
    [(EPS, "is not a PNG"), (LARGE, "13000×13000 pixels")],
    ids=["EPS", "169 million pixels"],
)
def test_what_submit_refuses_is_not_opened_here_either(store, data, said):
    name = named(data)
    store.put(KEYS.input(name), data)
    for read in (Inputs(JobFolder(store, KEYS)).picture, Inputs(JobFolder(store, KEYS)).mask):
        with pytest.raises(ValueError, match=said) as caught:
            read(name, 64, 64)
        assert str(caught.value).startswith(f"inputs/{name} ")


def jpeg(size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "blue").save(buffer, "JPEG")
    return buffer.getvalue()


TURNED = (ORIENTATION, 3, 1, short(6))
PHOTOS = {
    "time.jpg": tiff(TURNED, (0x0132, 5, 1, long(38)), tail=struct.pack("<LL", 2020, 1)),
    "place.jpg": tiff(
        TURNED,
        (0x8825, 4, 1, long(38)),
        tail=struct.pack("<HHHLLLLL", 1, 6, 10, 1, 56, 0, 2**32 - 1, 0),
    ),
    "unit.jpg": tiff(TURNED, (0x0128, 2, 2, b"2\0\0\0")),
}


@pytest.fixture
def service(tmp_path):
    with Service(tmp_path) as service:
        yield service


def test_rotated_photos_with_odd_values_elsewhere_are_rendered(tmp_path, service):
    for name, exif in PHOTOS.items():
        (tmp_path / name).write_bytes(with_exif(jpeg(), exif))
    entries = "".join(f", {{prompt: a ring, init_image: {name}}}" for name in PHOTOS)
    service.enter(prompts="a circle" + entries)
    for number in range(4 // SHARD):
        service.handle(number=number)
    assert service.ledger.status("job").done == 4
    assert service.ledger.status("job").failed == 0


def test_any_trouble_with_an_input_is_of_its_image_alone(tmp_path, service, monkeypatch):
    """Whatever an image library may come up with; the worker lives."""
    (tmp_path / "a.jpg").write_bytes(jpeg())
    service.enter(prompts="a circle, {prompt: a ring, init_image: a.jpg}")
    (name,) = (
        task.init_image for task in read_plan(JobFolder(service.store, KEYS)) if task.init_image
    )

    def odd(*_: object) -> None:
        raise struct.error("argument out of range")

    monkeypatch.setattr("jobs.pictures.rules.upright", odd)
    service.handle()
    status = service.ledger.status("job")
    assert (status.done, status.failed) == (1, 1)
    (failure,) = service.ledger.failures("job")
    assert failure.reason == f"inputs/{name} is damaged: argument out of range"
    assert service.stops == []


def test_an_error_of_another_kind_is_too(tmp_path, service, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    service.enter(prompts="a circle, {prompt: a ring, init_image: a.jpg}")

    def odd(*_: object) -> None:
        raise struct.error("argument out of range")

    monkeypatch.setattr(Inputs, "picture", odd)
    service.handle()
    status = service.ledger.status("job")
    assert (status.done, status.failed) == (1, 1)


def test_16_bits_of_grey_are_rendered_as_8_are(tmp_path, service):
    """Picture and mask. At strength 0 the picture comes back, through the autoencoder."""
    grey = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[:6] = 200
    for name, values in (("grey", grey), ("mask", mask)):
        Image.fromarray(values).save(tmp_path / f"{name}8.png")
        Image.fromarray(values.astype(np.uint16) * 257).save(tmp_path / f"{name}16.png")
    service.enter(
        prompts=", ".join(
            f"{{prompt: a, init_image: grey{n}.png, strength: 0{mask}}}"
            for mask in ("", ", mask: mask8.png", ", mask: mask16.png")
            for n in (8, 16)
        ),
    )
    for number in range(6 // SHARD):
        service.handle(number=number)
    pictures = [
        np.asarray(Image.open(io.BytesIO(service.store.get(KEYS(record["path"])))))
        for record in read_records(JobFolder(service.store, KEYS))
    ]
    assert len(pictures) == 6
    assert np.array_equal(pictures[0], pictures[1])
    for other in pictures[3:]:
        assert np.array_equal(pictures[2], other)
    assert np.array_equal(pictures[2][6:, :, 0], grey[6:])
    assert not np.array_equal(pictures[2][:6, :, 0], grey[:6])
