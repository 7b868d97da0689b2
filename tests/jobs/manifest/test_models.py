"""Several models in one manifest: in which order, with which defaults, and what is refused."""

from __future__ import annotations

import pytest

from jobs.errors import ManifestError
from jobs.manifest.load import load_manifest
from jobs.task import ModelPart, model_at
from tests.jobs.manifests import HEAD, load, messages, tasks, write


def planned(folder, body):
    return [(task.index, task.model, task.prompt) for task in tasks(folder, body)]


def test_a_job_of_one_model_says_so_once(tmp_path):
    job = load(tmp_path, "model: a\nprompts: [x, {prompt: y, model: a}]")
    assert [task.model for task in job.tasks()] == [None, None]
    assert (job.model, job.models) == ("a", [ModelPart("a", 2)])
    only = load(tmp_path, "model: a\nprompts: [{prompt: y, model: b}]")
    assert (only.model, only.models) == ("b", [ModelPart("b", 1)])


def test_prompts_are_rendered_model_by_model(tmp_path):
    write(tmp_path, "prompt,model\nfile b,b\nfile a,\n", "rows.csv")
    body = """\
model: a
prompts: [x, {prompt: y, model: b, seeds: [1, 2]}, z, {file: rows.csv}, {file: rows.csv, model: c}]
"""
    assert planned(tmp_path, body) == [
        *((0, "a", "x"), (1, "a", "z"), (2, "a", "file a")),
        *((3, "b", "y"), (4, "b", "y"), (5, "b", "file b"), (6, "b", "file b")),
        (7, "c", "file a"),
    ]
    job = load(tmp_path, body)
    assert job.models == [ModelPart("a", 3), ModelPart("b", 4), ModelPart("c", 1)]
    assert [model_at(job.models, index) for index in (0, 2, 3, 6, 7)] == ["a", "a", "b", "b", "c"]
    assert (job.model, job.total) == ("a, b, c", 8)


def test_the_axis_is_the_outermost_and_wins(tmp_path):
    body = """\
model: c
matrix: {steps: [1, 2], model: [b, a]}
prompts: [x, {prompt: y, model: c}]
"""
    found = [(task.model, task.prompt, task.sampling.steps) for task in tasks(tmp_path, body)]
    assert found == [(m, p, s) for m in "ba" for p in "xy" for s in (1, 2)]


def test_each_has_its_own_defaults(tmp_path):
    body = """\
matrix: {model: [demo, sd]}
defaults: {height: 256}
prompts: [x, {prompt: y, width: 192}]
"""
    found = [
        (task.model, task.sampling.width, task.sampling.height, task.sampling.guidance)
        for task in tasks(tmp_path, body)
    ]
    assert found == [
        *(("demo", 128, 256, 2.0), ("demo", 192, 256, 2.0)),
        *(("sd", 512, 256, 7.5), ("sd", 192, 256, 7.5)),
    ]


def test_choices_are_the_same_for_all(tmp_path):
    body = """\
matrix: {model: [a, b]}
defaults: {dynamic: random, seeds: {start: 0, count: 20}}
prompts: ["{red|green|blue} {ring|star}"]
"""
    found = planned(tmp_path, body)
    assert len(found) == 40
    assert [prompt for _, _, prompt in found[:20]] == [prompt for _, _, prompt in found[20:]]


def test_they_are_part_of_what_the_job_is(tmp_path):
    def digest(models: str) -> str:
        return load(tmp_path, f"matrix: {{model: [{models}]}}\nprompts: [x]").digest

    assert len({digest(models) for models in ("a", "a, b", "b, a", "a, c")}) == 4


def test_names_of_images_may_have_them(tmp_path):
    body = "matrix: {model: [a, sd-v1:4]}\noutput: {name: '{model}/{index}'}\nprompts: [x]"
    assert [task.name for task in tasks(tmp_path, body)] == ["a/0", "sd-v1-4/1"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "matrix: {model: [a, a]}\nprompts: [x]",
            "2:21: matrix.model[1]: 'a' is in the list twice",
        ),
        ("defaults: {model: a}\nprompts: [x]", "2:12: defaults.model: unknown key 'model'"),
        (
            "prompts: [{prompt: x, model: a b}]",
            "2:30: prompts[0].model: found 'a b', expected a name from the model list",
        ),
        (
            "matrix: {model: []}\nprompts: [x]",
            "2:17: matrix.model: found an empty list, expected a list of values, each a name",
        ),
    ],
)
def test_what_cannot_be_used(tmp_path, body, said):
    (found,) = messages(tmp_path, body)
    assert found.startswith(said)


def test_names_that_are_not_in_the_list_where_all_must_be(tmp_path):
    body = """\
model: sd-v1
matrix: {model: [demo, sd-v1-4, sd-v1-6]}
prompts: [x, {prompt: y, model: other}]
"""
    path = write(tmp_path, HEAD + body)
    with pytest.raises(ManifestError) as caught:
        load_manifest(path, models=lambda: {"sd-v1-4"})
    found = [str(one).partition("job.yaml:")[2].partition(" (")[0] for one in caught.value.problems]
    assert found == [
        "2:8: model: model 'sd-v1' is not in the model list; did you mean 'sd-v1-4'?",
        "3:33: matrix.model[2]: model 'sd-v1-6' is not in the model list; did you mean 'sd-v1-4'?",
        "4:33: prompts[1].model: model 'other' is not in the model list; known are demo, sd-v1-4",
    ]
    # What a run gives instead of the manifest's model need be in no list.
    given = write(tmp_path, f"{HEAD}model: unknown\nprompts: [x]")
    assert load_manifest(given, models=list, model="file").model == "file"


def test_more_than_a_job_may_have(tmp_path):
    rows = "".join(f"x,m{number}\n" for number in range(101))
    write(tmp_path, f"prompt,model\n{rows}", "rows.csv")
    (found,) = messages(tmp_path, "prompts: [{file: rows.csv}]")
    assert found.endswith("rows.csv:102:1: more than 100 models up to here; split the job")
