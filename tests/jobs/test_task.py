"""Tasks: what determines a picture's name, and plan lines."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from jobs.plan.task_line import read_task
from jobs.task import EmbeddingUse, LoraUse, Task, VaeUse, spec_digest
from sd_core.engine.request import Request
from sd_core.model.chunks import chunks_of
from sd_core.model.tokenizer import PromptTokenizer
from sd_core.spec import Sampling

TASK = Task(3, "000003-s7", "a ring", "", Sampling(seed=7, width=128, height=128))
FROM_IMAGE = replace(TASK, init_image="a" * 64 + ".png")
MODEL = "0" * 64
LORA = LoraUse("ink", "c" * 64, 0.5, 0.25)


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
        {"loras": (LORA,)},
        {"embeddings": (EmbeddingUse("ring", "c" * 64),)},
        {"vae": VaeUse("soft", "c" * 64)},
    ],
)
def test_every_parameter_changes_the_digest(change):
    assert spec_digest(replace(FROM_IMAGE, **change), MODEL) != spec_digest(FROM_IMAGE, MODEL)


def test_index_and_name_do_not_change_the_digest():
    moved = replace(TASK, index=9, name="elsewhere/ring")
    assert spec_digest(moved, MODEL) == spec_digest(TASK, MODEL)


@pytest.mark.parametrize(
    "change",
    [
        (),
        (replace(LORA, sha256="d" * 64),),
        (replace(LORA, weight=0.25),),
        (replace(LORA, text_weight=0.5),),
        (LORA, LORA),
    ],
)
def test_every_lora_changes_the_digest_by_what_it_does(change):
    inked = replace(TASK, loras=(LORA,))
    assert spec_digest(replace(TASK, loras=change), MODEL) != spec_digest(inked, MODEL)


def test_where_a_lora_comes_from_does_not_change_the_digest():
    named = replace(TASK, loras=(LORA,))
    brought = replace(TASK, loras=(replace(LORA, name="pen", file=f"{LORA.sha256}.pt"),))
    assert spec_digest(named, MODEL) == spec_digest(brought, MODEL)


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


LONG = "cat " * 80


@pytest.mark.parametrize(
    ("prompt", "negative", "settings", "written"),
    [
        ("a cat", "", {}, None),
        ("a cat", "", {"long_prompts": "cut"}, None),
        (LONG, "", {"long_prompts": "cut"}, None),  # what every picture was before
        (LONG, "", {}, "chunk"),
        ("a cat", LONG, {}, "chunk"),
        ("a cat", LONG, {"guidance": 1.0}, None),  # it is not read
        ("a cat", "", {"syntax": "a1111"}, "chunk"),
        ("a cat", "", {"syntax": "a1111", "long_prompts": "cut"}, None),
    ],
)
def test_long_prompts_are_in_the_name_where_they_are_another_picture(
    prompt, negative, settings, written
):
    sampling = Sampling(**settings)
    task = Task(0, "a", prompt, negative, sampling)
    assert task.canonical().get("long_prompts") == written
    again = read_task(json.dumps(task.to_json()).encode(), 0)
    assert again.canonical() == task.canonical()
    assert read_as(again) == read_as(task)


def read_as(task: Task) -> list[object]:
    """The chunks of tokens that the model reads of each prompt."""
    conditions = Request(task.prompt, task.sampling, task.negative).conditions
    return [chunks_of(one.texts[0].text, PromptTokenizer()) for one in conditions]
