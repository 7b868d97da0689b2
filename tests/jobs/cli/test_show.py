"""`sdbatch show`: records of pictures, and files without."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tests.commands import run_command
from worker.output.encode import encode_image

RECORD = {
    "version": 1,
    "name": "000000-s42",
    "prompt": "a red circle\nand a \x1b[31mring",
    "negative": "",
    "seed": 42,
    "sampler": "plms",
    "steps": 50,
    "guidance": 7.5,
    "eta": 0.0,
    "karras": False,
    "width": 64,
    "height": 64,
    "model": {"name": "demo", "digest": "0" * 64},
}


@pytest.fixture
def folder(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    for format in ("png", "jpeg", "webp"):
        (tmp_path / f"ours.{format}").write_bytes(encode_image(pixels, RECORD, format))
    Image.fromarray(pixels).save(tmp_path / "other.png")
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_a_line_for_each_value(folder, format):
    done = run_command(["show", f"ours.{format}"], {}, folder)
    assert done.returncode == 0
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert ["file", f"ours.{format}"] in lines
    assert ["model.name", "demo"] in lines
    assert ["guidance", "7.5"] in lines
    assert ["negative"] in lines
    assert "\x1b" not in done.stdout
    begins = {line.index(line.split(maxsplit=1)[1]) for line in done.stdout.splitlines()[:2]}
    assert len(begins) == 1


def test_for_programs_all_of_it(folder):
    done = run_command(["show", "ours.png", "ours.webp", "--json"], {}, folder)
    images = json.loads(done.stdout)["images"]
    assert [one["file"] for one in images] == ["ours.png", "ours.webp"]
    assert all(one["record"] == RECORD for one in images)


def test_the_others_are_shown_beside_files_without_a_record(folder):
    done = run_command(["show", "other.png", "ours.png", "text.png", "gone.png"], {}, folder)
    assert done.returncode == 2
    assert "ours.png" in done.stdout.splitlines()[0]
    for line in (
        "other.png: the image holds no record of sdbatch",
        "text.png: no readable image: it is",
        "gone.png: cannot be read: no such file or directory",
    ):
        assert line in done.stderr
