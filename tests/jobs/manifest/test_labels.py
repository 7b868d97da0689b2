"""Labels in manifests: where they come from, where they are filled in, and what is refused."""

from __future__ import annotations

import json

import pytest

from tests.jobs.manifests import load, messages, tasks, write

CSV = """\
prompt,meta.sku,meta.Colour-1,seed
a ${Colour-1} ring,00123,red,1
a ring of ${meta.sku},A 5,,2
"""


def labels(folder, body):
    return [dict(task.meta) for task in tasks(folder, body)]


def prompts(folder, body):
    return [task.prompt for task in tasks(folder, body)]


def test_columns_of_csv_are_texts(tmp_path):
    write(tmp_path, CSV, "rows.csv")
    body = "prompts: [{file: rows.csv}]"
    assert labels(tmp_path, body) == [{"sku": "00123", "Colour-1": "red"}, {"sku": "A 5"}]
    assert prompts(tmp_path, body) == ["a red ring", "a ring of A 5"]
    assert [task.template for task in tasks(tmp_path, body)] == [
        "a ${Colour-1} ring",
        "a ring of ${meta.sku}",
    ]


def test_keys_of_jsonl(tmp_path):
    rows = [
        {"prompt": "a ${n} ${b}", "meta.n": 5, "meta.b": True, "meta.none": None},
        {"prompt": "a ${n}", "meta": {"n": 0.5}},
    ]
    write(tmp_path, "\n".join(map(json.dumps, rows)), "rows.jsonl")
    assert prompts(tmp_path, "prompts: [{file: rows.jsonl}]") == ["a 5 true", "a 0.5"]


def test_of_manifests_the_nearest_wins(tmp_path):
    write(tmp_path, "prompt,meta.b\nx,row\ny,\n", "rows.csv")
    body = """\
defaults: {meta: {a: 007, b: yes}}
prompts: [x, {prompt: y, meta: {b: own}}, {file: rows.csv, meta: {b: file, c: 1.50}}]
"""
    assert labels(tmp_path, body) == [
        {"a": "007", "b": "yes"},
        {"a": "007", "b": "own"},
        {"a": "007", "b": "row", "c": "1.50"},
        {"a": "007", "b": "file", "c": "1.50"},
    ]


def test_only_prompts_with_labels_are_filled(tmp_path):
    body = """\
prompts: ["a ${sku}", {prompt: "a ${sku} for $${price}", negative: "no ${sku}", meta: {sku: k}}]
"""
    plain, filled = tasks(tmp_path, body)
    assert (plain.prompt, plain.meta, plain.template) == ("a ${sku}", (), None)
    assert (filled.prompt, filled.negative) == ("a k for ${price}", "no k")


def test_as_if_it_had_been_written_there(tmp_path):
    """Choices and tags of labels are made; a variable of the template stays one."""
    body = """\
defaults: {dynamic: combinatorial, meta: {colour: "{red|blue}"}}
prompts: ["${x=big} ${x} ${colour} ring"]
"""
    assert prompts(tmp_path, body) == ["big red ring", "big blue ring"]


def test_with_a_matrix(tmp_path):
    body = """\
defaults: {meta: {thing: ring}}
matrix: {prompt: {from: ring, to: [ring, star]}, steps: [1, 2]}
prompts: ["a ${thing}"]
"""
    assert prompts(tmp_path, body) == ["a ring", "a ring", "a star", "a star"]


def test_names_of_images_may_have_them(tmp_path):
    body = """\
defaults: {meta: {sku: "Ä 12/b"}}
output: {name: "{meta.sku}/{index}"}
prompts: [x, {prompt: y, meta: {size: XL}, name: "{meta.size}-{meta.sku}-{seed}"}]
"""
    assert [task.name for task in tasks(tmp_path, body)] == ["ä-12-b/0", "xl-ä-12-b-42"]


def test_a_label_may_be_called_as_something_of_python(tmp_path):
    body = """\
output: {name: "{meta.__class__}-{meta._values}-{index}"}
prompts: [{prompt: x, meta: {__class__: "first", _values: 2}}]
"""
    assert [task.name for task in tasks(tmp_path, body)] == ["first-2-0"]


def test_other_labels_are_another_job_with_the_same_pictures(tmp_path):
    one, other = (load(tmp_path, f"prompts: [{{prompt: x, meta: {{a: {v}}}}}]") for v in "12")
    (first,), (second,) = one.tasks(), other.tasks()
    assert first.canonical() == second.canonical()
    assert one.digest != other.digest


OWN = "(a '${' itself is written '$${')"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (
            'prompt: "a ${skuu}", meta: {sku: k}',
            f"20: prompts[0].prompt: has no label 'skuu'; did you mean 'sku'? {OWN}",
        ),
        (
            'prompt: "a ${}", meta: {sku: k}',
            f"20: prompts[0].prompt: has no label ''; it has sku {OWN}",
        ),
        (
            'prompt: x, negative: "${b}", meta: {a: k}',
            f"33: prompts[0].negative: has no label 'b'; it has a {OWN}",
        ),
        (
            "prompt: x, meta: {a b: k}",
            "30: prompts[0].meta.a b: 'a b' is no name of a label; expected 1 to 40 letters, "
            "digits, - and _",
        ),
        (
            "prompt: x, meta: {a: [k]}",
            "33: prompts[0].meta.a: found a list, expected a text of at most 1,000 characters",
        ),
        (
            "prompt: x, meta: k",
            "29: prompts[0].meta: found 'k', expected a mapping of names to texts, the labels",
        ),
        (
            'prompt: x, name: "{meta.a}"',
            "29: prompts[0].name: has '{meta.a}', and this prompt has no label 'a'",
        ),
        (
            f'prompt: x, name: "{{meta.a}}{{prompt}}{{seed}}{{steps}}", meta: {{a: {"k" * 50}}}',
            "29: prompts[0].name: '{meta.a}{prompt}{seed}{steps}' gives names longer than 220 "
            "bytes with its labels",
        ),
        (
            'prompt: x, meta: {a: "\\a"}',
            "33: prompts[0].meta.a: character U+0007 is not allowed",
        ),
    ],
)
def test_what_cannot_be_used(tmp_path, prompt, said):
    (found,) = messages(tmp_path, f"prompts: [{{{prompt}}}]")
    assert found.partition(":")[2] == said


@pytest.mark.parametrize("template", ["{", "{meta.}", "{meta.a.b}", "{meta.a!r}", "{meta.a:3}"])
def test_names_that_are_no_templates_are_told_once(tmp_path, template):
    body = f'output: {{name: "{template}"}}\nprompts: [x, {{prompt: y, meta: {{a: k}}}}]'
    (found,) = messages(tmp_path, body)
    assert found.startswith("2:16: output.name: ")


def test_numbers_that_are_none(tmp_path):
    write(tmp_path, '{"prompt": "x", "meta.a": 1e400}\n', "rows.jsonl")
    (found,) = messages(tmp_path, "prompts: [{file: rows.jsonl}]")
    assert "rows.jsonl:1:17: meta.a: found" in found


def test_too_many_and_too_long(tmp_path):
    many = ", ".join(f"a{number}: k" for number in range(33))
    (found,) = messages(tmp_path, f"defaults: {{meta: {{{many}}}}}\nprompts: [x]")
    assert found.endswith("defaults.meta: found 33 labels, expected at most 32")
    (found,) = messages(tmp_path, f"prompts: [{{prompt: x, meta: {{a: {'k' * 1001}}}}}]")
    assert "a text of at most 1,000 characters" in found


def test_columns_are_named_where_they_are_wrong(tmp_path):
    write(tmp_path, "prompt,meta.a b,meta.c\nx,1,2\n${d},,3\n", "rows.csv")
    found = [
        one.partition("rows.csv:")[2] for one in messages(tmp_path, "prompts: [{file: rows.csv}]")
    ]
    assert found[0].startswith("2:3: meta.a b: 'a b' is no name of a label")
    assert found[1].startswith("3:1: prompt: has no label 'd'; it has c")
