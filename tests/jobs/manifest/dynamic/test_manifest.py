"""Dynamic prompts in manifests: which images they give, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.resolved_manifest import write_resolved
from jobs.manifest.load import load_manifest
from jobs.plan.task_line import read_task
from jobs.storage import LocalStore
from tests.jobs.manifests import HEAD, load, messages, write

RANDOM = "defaults: {dynamic: random}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "red\nblue\ngreen\nyellow\n", "wildcards/colours.txt")
    write(tmp_path, "a [cat:dog:0.5]\na [cat:dog:99]\n", "wildcards/changes.txt")
    return tmp_path


def test_each_seed_has_a_choice_of_its_own(folder):
    body = RANDOM + (
        "wildcards: wildcards\nmatrix: {steps: [5, 9]}\n"
        "prompts: [{prompt: 'a __colours__ {cat|dog}', seeds: {start: 0, count: 40}}]"
    )
    tasks = list(load(folder, body).tasks())
    by_seed: dict[int, set[str]] = {}
    for task in tasks:
        by_seed.setdefault(task.sampling.seed, set()).add(task.prompt)
        assert task.template == "a __colours__ {cat|dog}"
    assert len(tasks) == 80
    assert all(len(prompts) == 1 for prompts in by_seed.values())  # a sweep compares like with like
    assert len(set.union(*by_seed.values())) == 8
    assert tasks == list(load(folder, body).tasks())


def test_what_is_written_above_does_not_change_a_choice(folder):
    prompt = "'{a|b|c|d|e|f} {g|h|i|j}'"
    (alone,) = load(folder, RANDOM + f"prompts: [{prompt}]").tasks()
    *_, below = load(folder, RANDOM + f"prompts: [x, '{{y|z}}', {prompt}]").tasks()
    assert below.prompt == alone.prompt


def test_combinatorial_gives_all_there_are(folder):
    body = (
        "wildcards: wildcards\nmatrix: {guidance: [2, 3]}\n"
        "prompts:\n- {prompt: 'a {2$$red|blue|green} ball', negative: '{x|y}', seeds: [1, 2], "
        "dynamic: combinatorial}\n- 'a {plain} one'"
    )
    tasks = list(load(folder, body).tasks())
    assert len(tasks) == 3 * 2 * 2 * 2 + 2
    pictures = {(t.prompt, t.negative, t.sampling.guidance, t.sampling.seed) for t in tasks}
    assert len(pictures) == len(tasks)
    assert {t.prompt for t in tasks[:-2]} == {
        "a red, blue ball",
        "a red, green ball",
        "a blue, green ball",
    }
    assert (tasks[-1].prompt, tasks[-1].template) == ("a {plain} one", None)


def test_the_template_is_in_plans_and_in_no_name(folder):
    chosen, plain = (
        next(load(folder, body).tasks())
        for body in (RANDOM + "prompts: ['a {cat|cat}']", "prompts: ['a cat']")
    )
    assert (chosen.template, plain.template) == ("a {cat|cat}", None)
    assert chosen.canonical() == plain.canonical()
    assert read_task(json.dumps(chosen.to_json()).encode(), 0) == chosen
    assert "template" not in plain.to_json()


def test_the_resolved_manifest_needs_no_wildcards(folder):
    body = RANDOM + "wildcards: wildcards\nprompts: [{prompt: a __colours__ cat, seeds: [1, 2, 3]}]"
    manifest = load(folder, body)
    keys = JobKeys(manifest.job_id())
    job = JobFolder(LocalStore(folder / "out"), keys)
    write_resolved(job, manifest, "exact")
    again = load_manifest(folder / "out" / keys.resolved)
    assert [t.canonical() for t in again.tasks()] == [t.canonical() for t in manifest.tasks()]


def test_rows_of_files_have_choices_too(folder):
    write(folder, "prompt,dynamic\n{a|b},combinatorial\n{c|d},\n", "rows.csv")
    prompts = [t.prompt for t in load(folder, "prompts: [{file: rows.csv}]").tasks()]
    assert prompts == ["a", "b", "{c|d}"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            RANDOM + "prompts: [a, 'a {b|c']",
            "3:14: prompts[1]: the brace is never closed (at character 3)",
        ),
        (
            RANDOM + "wildcards: wildcards\nprompts:\n- {prompt: a __colurs__}",
            "5:12: prompts[0].prompt: there is no wildcard __colurs__ in wildcards; did you mean "
            "'__colours__'? (at character 3)",
        ),
        (
            RANDOM + "prompts: [a __colours__]",
            "3:11: prompts[0]: __colours__ is a wildcard, and the manifest names no wildcards "
            "folder (at character 3)",
        ),
        (
            "defaults: {dynamic: random, negative: '{3$$a|b}'}\nprompts: [a, b]",
            "2:39: defaults.negative: 3 are to be chosen of 2 options (at character 1)",
        ),
        (
            "wildcards: nowhere\nprompts: [a]",
            "2:12: wildcards: 'nowhere' is no folder",
        ),
        (
            "wildcards: ../elsewhere\nprompts: [a]",
            "2:12: wildcards: '../elsewhere' is outside the manifest's folder; move the file "
            "there, or give --allow-outside",
        ),
        (
            "prompts:\n- {prompt: '" + "{a|b|c|d|e|f|g|h|i|j}" * 12 + "', dynamic: combinatorial}",
            "3:3: prompts[0]: 1,000,000,000,000 images of all its choices are more than "
            "10,000,000 images up to here; split the job",
        ),
        (
            "wildcards: wildcards\ndefaults: {syntax: a1111, dynamic: combinatorial, steps: 10}\n"
            "prompts: [x, __changes__]",
            "4:14: prompts[1]: filled in, the prompt changes at 99, which is outside its 10 steps "
            "(at character 12)",
        ),
        (
            "prompts: [{prompt: a, dynamic: all}]",
            "2:32: prompts[0].dynamic: found 'all', expected one of none, random, combinatorial",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(folder, body, message):
    found = [one.replace(f"{folder}/", "") for one in messages(folder, body)]
    assert found == [message]


def test_a_million_random_prompts_are_planned(folder):
    """Counted in thousands here; the time of a million is in tests/bench."""
    body = RANDOM + (
        "wildcards: wildcards\nprompts: [{prompt: 'a __colours__ {cat|dog}', seeds: {count: 5000}}]"
    )
    manifest = load_manifest(write(folder, HEAD + body))
    assert manifest.total == 5000
    assert len({task.prompt for task in manifest.tasks()}) == 8
