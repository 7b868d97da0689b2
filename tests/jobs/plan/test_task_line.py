"""Lines of a plan: what was written comes back, and nothing else gets in."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.limits import MAX_FILE_NAME_CHARS, MAX_LABEL_CHARS, MAX_LABELS, MAX_PROMPT_CHARS
from jobs.plan.task_line import MAX_LINE_BYTES, read_task
from jobs.task import IMAGE_FORMATS, EmbeddingUse, LoraUse, Task, VaeUse
from sd_core.spec import MOST_EMBEDDINGS, MOST_LORA_WEIGHT, MOST_LORAS, Sampling

TASK = Task(3, "a/000003-s7", "a ring", "", Sampling(seed=7, width=128, height=128))
INPUT = "a" * 64 + ".png"
LORA = LoraUse("ink", "e" * 64, 0.5, 0.25, "e" * 64 + ".safetensors")
VAE = VaeUse("soft", LORA.sha256, LORA.file)


def line(task: Task = TASK, **changes: object) -> bytes:
    return json.dumps(task.to_json() | changes).encode()


def tasks() -> st.SearchStrategy[Task]:
    text = st.text(max_size=50)
    samplings = st.builds(
        Sampling,
        sampler=st.sampled_from(["plms", "euler"]),
        steps=st.integers(1, 1000),
        guidance=st.floats(allow_nan=False, allow_infinity=False),
        seed=st.integers(0, 2**64 - 1),
    )
    weights = st.floats(-MOST_LORA_WEIGHT, MOST_LORA_WEIGHT)
    loras = st.builds(
        LoraUse,
        name=st.text(min_size=1, max_size=50),
        sha256=st.just("e" * 64),
        weight=weights,
        text_weight=weights,
        file=st.sampled_from([None, LORA.file]),
    )
    embeddings = st.builds(
        EmbeddingUse,
        name=st.text(min_size=1, max_size=50),
        sha256=st.just("e" * 64),
        file=st.sampled_from([None, LORA.file]),
    )
    return st.builds(
        Task,
        index=st.integers(0, 10**7),
        name=st.sampled_from(["000001-s1", "größer/日本", "a b", "x" * 220]),
        prompt=text,
        negative=text,
        sampling=samplings,
        init_image=st.sampled_from([None, "c" * 64 + ".webp"]),
        mask=st.none(),
        format=st.sampled_from(IMAGE_FORMATS),
        loras=st.lists(loras, max_size=3).map(tuple),
        embeddings=st.lists(embeddings, max_size=3).map(tuple),
        vae=st.sampled_from([None, VAE, replace(VAE, file=None)]),
        model=st.sampled_from([None, "sd-v1:4"]),
        meta=st.dictionaries(st.text("ab-1", min_size=1), text, max_size=3).map(
            lambda labels: tuple(labels.items())
        ),
    )


@given(tasks())
def test_round_trip(task):
    assert read_task(line(task), task.index) == task


def test_the_longest_prompts_of_a_manifest_fit():
    wide = "\N{GRINNING FACE}" * MAX_PROMPT_CHARS
    loras = (replace(LORA, name=wide[:MAX_FILE_NAME_CHARS]),) * MOST_LORAS
    task = replace(TASK, prompt=wide, negative=wide, name="\u65e5" * 70, init_image=INPUT)
    embedding = EmbeddingUse(wide[:MAX_FILE_NAME_CHARS], LORA.sha256, LORA.file)
    task = replace(task, loras=loras, template=wide, embeddings=(embedding,) * MOST_EMBEDDINGS)
    labels = tuple((f"{number:040}", wide[:MAX_LABEL_CHARS]) for number in range(MAX_LABELS))
    task = replace(task, vae=replace(VAE, name=wide[:MAX_FILE_NAME_CHARS]), meta=labels)
    assert len(line(task)) < MAX_LINE_BYTES
    assert read_task(line(task), 3) == task


@pytest.mark.parametrize(
    ("changes", "flaw"),
    [
        ({"prompt": "x" * 10_001}, "prompt: String should have at most 10000"),
        ({"prompt": None}, "prompt: Input should be a valid string"),
        ({"format": "exe"}, "format: Input should be 'png'"),
        ({"format": ["png"]}, "format: Input should be 'png'"),
        ({"index": 4}, "its index is that of another place in the plan"),
        ({"index": 10**4000}, "index"),
        ({"index": True}, "index: Input should be a valid integer"),
        ({"steps": 0}, "steps 0 is not within 1 to 1000"),
        ({"steps": 10**100}, "is not within 1 to 1000"),
        ({"steps": 20.5}, "steps: Input should be a valid integer"),
        ({"width": 100}, "width 100 is not a multiple of 8"),
        ({"height": 10**6}, "height 1000000 is not"),
        ({"guidance": float("nan")}, "guidance: Input should be a finite number"),
        ({"guidance": [7.5]}, "guidance: Input should be a valid number"),
        ({"seed": -1}, "seed -1 is not within"),
        ({"seed": "7"}, "seed: Input should be a valid integer"),
        ({"strength": 2}, "strength 2.0 is not within 0 to 1"),
        ({"eta": 0.5}, "goes with sampler ddim or tcd only"),
        ({"karras": 1}, "karras: Input should be a valid boolean"),
        ({"sampler": "euler-b"}, "sampler: Input should be 'plms'"),
        ({"name": "../../secret"}, "'../../secret' is no name of an image"),
        ({"name": "a//b"}, "is no name of an image"),
        ({"name": "/abs"}, "is no name of an image"),
        ({"name": ""}, "is no name of an image"),
        ({"name": "x" * 250}, "is no name of an image"),
        ({"init_image": "../ring.png"}, "is not valid as the name of an input"),
        ({"mask": INPUT}, "a mask without an init_image"),
        ({"loras": [LORA.to_json()] * 33}, "loras: List should have at most 32 items"),
        (
            {"loras": [LORA.to_json() | {"weight": 101}]},
            "loras.0.weight: Input should be less than",
        ),
        ({"loras": [LORA.to_json() | {"sha256": "E" * 64}]}, "loras.0.sha256: String should match"),
        ({"loras": [LORA.to_json() | {"file": "../a.pt"}]}, "is not valid as the name of an input"),
        ({"loras": [LORA.to_json() | {"file": "f" * 64 + ".pt"}]}, "has another name than its"),
        ({"loras": [LORA.to_json() | {"dim": 4}]}, "loras.0.dim is not known here"),
        ({"loras": [LORA.to_json() | {"name": ""}]}, "loras.0.name: String should have at least"),
        ({"tiling": True}, "tiling is not known here: the job was submitted by a newer version"),
        ({"a" * 10_000: 2}, "is not known here"),
    ],
)
def test_what_a_manifest_could_not_say_is_refused(changes, flaw):
    with pytest.raises(ValueError, match=r"^image 3: ") as caught:
        read_task(line(**changes), 3)
    assert flaw in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", [*TASK.to_json()])
def test_a_missing_parameter_is_named(name):
    values = TASK.to_json()
    del values[name]
    with pytest.raises(ValueError, match=f"image 3: {name}: Field required"):
        read_task(json.dumps(values).encode(), 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"[1]",
        b"null",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"a":' * 40_000,
        b"9" * 300_000,
        line().replace(b"a ring", rb"\ud800"),
        b" " * (MAX_LINE_BYTES + 1),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_task_is_a_value_error(data):
    with pytest.raises(ValueError, match=r"^image 3: "):
        read_task(data, 3)
