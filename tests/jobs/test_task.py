"""Tasks: what determines a picture's name, and plan lines."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from jobs.task import Task, spec_digest
from sd_core.spec import Sampling

TASK = Task(3, "000003-s7", "a ring", "", Sampling(seed=7, width=128, height=128))
FROM_IMAGE = replace(TASK, init_image="a" * 64 + ".png")
MODEL = "0" * 64


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a star"},
        {"negative": "blurry"},
        {"format": "jpeg"},
        {"init_image": "b" * 64 + ".png"},
        {"mask": "b" * 64 + ".png"},
        {"sampling": replace(FROM_IMAGE.sampling, strength=0.5)},
        {"sampling": replace(FROM_IMAGE.sampling, seed=0)},
        {"sampling": replace(FROM_IMAGE.sampling, guidance=0.0)},
        {"sampling": replace(FROM_IMAGE.sampling, sampler="euler")},
        {"sampling": replace(FROM_IMAGE.sampling, sampler="euler", karras=True)},
        {"sampling": replace(FROM_IMAGE.sampling, sampler="ddim", eta=0.5)},
        {"sampling": replace(FROM_IMAGE.sampling, width=256)},
        {"sampling": replace(FROM_IMAGE.sampling, height=256)},
        {"sampling": replace(FROM_IMAGE.sampling, steps=51)},
    ],
)
def test_every_parameter_changes_the_digest(change):
    assert spec_digest(replace(FROM_IMAGE, **change), MODEL) != spec_digest(FROM_IMAGE, MODEL)


def test_index_and_name_do_not_change_the_digest():
    moved = replace(TASK, index=9, name="elsewhere/ring")
    assert spec_digest(moved, MODEL) == spec_digest(TASK, MODEL)


def test_strength_counts_only_with_an_init_image():
    other = replace(TASK, sampling=replace(TASK.sampling, strength=0.1))
    assert spec_digest(other, MODEL) == spec_digest(TASK, MODEL)


def test_model_changes_the_digest():
    assert spec_digest(TASK, MODEL) != spec_digest(TASK, "1" * 64)


def test_digest_is_that_of_the_first_release():
    """A change here renames every picture: existing jobs would be rendered again."""
    canonical = (
        '{"eta":0.0,"format":"png","guidance":7.5,"height":128,"karras":false,"negative":"",'
        '"prompt":"a ring","sampler":"plms","seed":7,"steps":50,"width":128}'
    )
    expected = hashlib.sha256(f"{canonical}\n{MODEL}".encode()).hexdigest()
    assert spec_digest(TASK, MODEL) == expected


def test_canonical_json_is_compact_sorted_ascii():
    text = replace(TASK, prompt="größer").canonical_json()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert text.isascii()


def test_json_names_every_parameter():
    assert (
        set(TASK.to_json())
        == set(FROM_IMAGE.to_json())
        == {
            *("index", "name", "prompt", "negative", "sampler", "steps", "guidance", "width"),
            *("height", "seed", "strength", "eta", "karras", "init_image", "mask", "format"),
        }
    )
