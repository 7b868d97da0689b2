"""Captions of contact sheets: what was swept, within the room that there is."""

from __future__ import annotations

import io

import pytest
from PIL import Image, ImageChops

from jobs.folder.layout import JobFolder
from jobs.report import write_report
from jobs.report.captions import lines_within, swept_fields, swept_values
from jobs.report.sheets import CAPTION, SWEPT_LINE, contact_sheet
from jobs.storage import LocalStore
from tests.jobs.report.samples import KEYS, a_record, put_image


def test_fields_in_which_images_differ():
    ink = {"name": "ink", "sha256": "ab" * 32, "weight": 0.5, "text_weight": 0.5}
    records = [
        a_record(0, steps=20, meta=(("sku", "A"),)),
        a_record(1, steps=25, sampler="ddim", prompt="another", width=128),
        a_record(2, steps=25, sampler="heun", karras=True) | {"loras": [ink]},
    ]
    fields = swept_fields(records)
    assert fields == ["sampler", "steps", "karras", "loras", "size", "meta.sku"]
    assert [swept_values(record, fields) for record in records] == [
        ["plms", "steps 20", "64x64", "sku A"],
        ["ddim", "steps 25", "128x64"],
        ["heun", "steps 25", "karras", "LoRA ink 0.5", "64x64"],
    ]
    assert swept_fields(records[:1]) == []


def test_guidance_of_zero_is_a_value():
    records = [a_record(0, guidance=0.0), a_record(1, guidance=7.5)]
    found = [swept_values(one, ["guidance"]) for one in records]
    assert found == [["guidance 0"], ["guidance 7.5"]]


@pytest.mark.parametrize(
    ("facts", "lines"),
    [
        ([], []),
        (["steps 25", "ddim"], ["steps 25 · ddim"]),
        (
            ["steps 25", "guidance 7.5", "ddim"],
            ["steps 25", "guidance 7.5…"],
        ),
        (["a" * 30, "b"], ["a" * 14 + "…", "b"]),
        (["a" * 15, "b" * 15, "c"], ["a" * 15, "b" * 14 + "…"]),
    ],
)
def test_lines_fit_into_their_room(facts, lines):
    found = lines_within(facts, 15, 2, len)
    assert found == lines
    assert all(len(line) <= 15 for line in found)


def test_sheets_say_what_was_swept(tmp_path):
    store = LocalStore(tmp_path)
    folder = JobFolder(store, KEYS)
    records = [put_image(store, index, guidance=5.0 + index) for index in range(3)]
    write_report(folder, records)
    plain = Image.open(io.BytesIO(contact_sheet(folder, records)))
    told = Image.open(io.BytesIO(store.get(KEYS.sheet(0))))
    assert told.size == (plain.width, plain.height + SWEPT_LINE)
    # Index and seed are where they were, and below each picture stands something of its own.
    bottom = told.height - 12
    captions = [
        told.crop((12 + n * 204, bottom - SWEPT_LINE, 204 + n * 204, bottom)) for n in range(3)
    ]
    assert all(ImageChops.difference(one, captions[0]).getbbox() for one in captions[1:])
    area = (0, 0, plain.width, plain.height - CAPTION // 2)
    difference = ImageChops.difference(told.crop(area), plain.crop(area))
    assert max(high for _, high in difference.getextrema()) < 32
