"""Measurements of this machine: kept beside what was measured before, bounded, checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.errors import InputError
from jobs.plan.calibration import (
    FILE,
    MOST_ENTRIES,
    SizeSpeed,
    Speed,
    keep_speed,
    read_calibration,
)


def size(width: int = 512, evaluation_s: float = 0.5) -> SizeSpeed:
    return SizeSpeed(
        width=width,
        height=512,
        rows=16,
        evaluation_s=evaluation_s,
        decode_s=0.1,
        encode_s=0.02,
        alone_evaluation_s=0.2,
        alone_decode_s=0.3,
    )


def speed(*sizes: SizeSpeed, **changes) -> Speed:
    values = {
        "model": "v1",
        "digest": "ab" * 32,
        "device": "cpu",
        "dtype": "float32",
        "execution": "packed",
        "threads": 2,
        "measured": "2026-01-02T03:04:05+00:00",
        "sizes": list(sizes) or [size()],
    }
    return Speed(**{**values, **changes})


def test_images_a_second_and_seconds_of_an_image():
    one = size(evaluation_s=0.5)
    assert one.images_per_s(20) == pytest.approx(8 / (20 * 0.5 + 8 * 0.1))
    assert one.image_s(20) == pytest.approx(20 * 0.2 + 0.3 + 0.02)


def test_a_later_measurement_takes_the_place_of_an_earlier_one(tmp_path: Path):
    keep_speed(tmp_path, speed(size(512), size(768)))
    keep_speed(tmp_path, speed(size(512, 0.25), size(1024), measured="later"))
    (kept,) = read_calibration(tmp_path).speeds
    assert kept.measured == "later"
    assert {one.width: one.evaluation_s for one in kept.sizes} == {512: 0.25, 768: 0.5, 1024: 0.5}


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "cd" * 32},
        {"device": "cuda: a card"},
        {"dtype": "float16"},
        {"execution": "eager"},
        {"threads": 4},
    ],
)
def test_what_was_measured_of_something_else_stays(tmp_path: Path, change):
    keep_speed(tmp_path, speed())
    keep_speed(tmp_path, speed(**change))
    latest, first = read_calibration(tmp_path).speeds
    assert (latest, first) == (speed(**change), speed())


def test_the_file_stays_small(tmp_path: Path):
    for number in range(MOST_ENTRIES + 3):
        path = keep_speed(tmp_path, speed(threads=1 + number))
    threads = [one.threads for one in read_calibration(tmp_path).speeds]
    assert threads == list(range(MOST_ENTRIES + 3, 3, -1))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows", 0),
        ("evaluation_s", 0.0),
        ("evaluation_s", float("inf")),
        ("decode_s", "0.1"),
        ("width", 10**9),
        ("more", 1),
    ],
)
def test_a_file_with_odd_values_is_as_none(tmp_path: Path, name: str, value: object):
    path = keep_speed(tmp_path, speed())
    document = json.loads(path.read_text())
    document["speeds"][0]["sizes"][0][name] = value
    path.write_text(json.dumps(document))
    assert read_calibration(tmp_path).speeds == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 2}', b"\xff" * 99, b"[" * 10**6])
def test_a_damaged_file_is_written_anew(tmp_path: Path, content: bytes):
    (tmp_path / FILE).write_bytes(content)
    assert read_calibration(tmp_path).speeds == []
    keep_speed(tmp_path, speed())
    assert read_calibration(tmp_path).speeds == [speed()]


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    with pytest.raises(InputError, match=r"SDBATCH_CACHE: .*taken cannot be written"):
        keep_speed(taken, speed())
