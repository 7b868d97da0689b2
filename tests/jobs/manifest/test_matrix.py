"""Axes of a matrix that are no settings: a text of the prompts, and seeds."""

from __future__ import annotations

from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.resolved_manifest import write_resolved
from jobs.manifest.load import load_manifest
from jobs.storage import LocalStore
from tests.jobs.manifests import load, tasks, write


def test_a_text_is_replaced_in_every_prompt(tmp_path):
    write(tmp_path, "a red hat\na red, red coat\n", "p.txt")
    body = (
        "matrix: {steps: [5, 6], prompt: {from: red, to: [red, blue]}}\n"
        "prompts: [a red cat, {prompt: red, negative: red}, {file: p.txt}]"
    )
    found = [(t.prompt, t.negative, t.sampling.steps) for t in tasks(tmp_path, body)]
    assert found[:4] == [
        ("a red cat", "", 5),
        ("a blue cat", "", 5),
        ("a red cat", "", 6),
        ("a blue cat", "", 6),
    ]
    assert found[5] == ("blue", "red", 5)
    assert found[-1] == ("a blue, blue coat", "", 6)
    assert len(found) == 16


def test_seeds_of_the_matrix_are_those_of_all_prompts(tmp_path):
    body = (
        "matrix: {seeds: [7, 8], guidance: [2, 3]}\ndefaults: {seeds: [1]}\n"
        "prompts: [a, {prompt: b, seeds: {count: 99}}]"
    )
    found = [(t.prompt, t.sampling.guidance, t.sampling.seed) for t in tasks(tmp_path, body)]
    assert found == [(p, g, s) for p in "ab" for g in (2.0, 3.0) for s in (7, 8)]
    counted = tasks(tmp_path, "matrix: {seeds: {start: 5, count: 3}}\nprompts: [a]")
    assert [task.sampling.seed for task in counted] == [5, 6, 7]


def test_the_resolved_manifest_has_the_same_images(tmp_path):
    body = (
        "matrix: {seeds: [7, 8], prompt: {from: red, to: [blue, '5']}}\n"
        "prompts: [a red cat, {prompt: red, seeds: [1]}]"
    )
    manifest = load(tmp_path, body)
    keys = JobKeys(manifest.job_id())
    write_resolved(JobFolder(LocalStore(tmp_path / "out"), keys), manifest, "exact")
    again = load_manifest(tmp_path / "out" / keys.resolved)
    assert list(again.tasks()) == list(manifest.tasks())
    only_seeds = load(tmp_path, "matrix: {seeds: [7, 8]}\nprompts: [a]")
    write_resolved(JobFolder(LocalStore(tmp_path / "2"), keys), only_seeds, "exact")
    assert "matrix" not in (tmp_path / "2" / keys.resolved).read_text()


def test_choices_are_made_before_a_text_is_replaced(tmp_path):
    body = (
        "defaults: {dynamic: random}\nmatrix: {seeds: {start: 0, count: 20}, "
        "prompt: {from: cat, to: [cat, dog]}}\nprompts: ['a {red|blue} cat']"
    )
    found = tasks(tmp_path, body)
    assert {task.prompt for task in found} == {
        f"a {colour} {animal}" for colour in ("red", "blue") for animal in ("cat", "dog")
    }
    by_seed = {}
    for task in found:
        by_seed.setdefault(task.sampling.seed, set()).add(task.prompt.split()[1])
    assert all(len(colours) == 1 for colours in by_seed.values())
