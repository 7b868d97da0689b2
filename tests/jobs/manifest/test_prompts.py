"""Syntax of prompts in manifests: settings, and what is wrong with a prompt, with its place."""

from __future__ import annotations

import pytest

from jobs.manifest.load import load_manifest
from tests.jobs.manifests import HEAD, load, messages, write

A1111 = "defaults: {syntax: a1111, steps: 10}\n"


def test_settings_of_prompts_come_from_anywhere(tmp_path):
    write(tmp_path, "prompt,clip_skip,syntax\na,2,\nb,,a1111\n", "rows.csv")
    body = """\
defaults: {emphasis: comfy, syntax: a1111}
matrix: {clip_skip: [1, 3]}
prompts: [{prompt: c, long_prompts: cut}, {prompt: d, syntax: plain, emphasis: a1111}]
"""
    job = load(tmp_path, body)
    found = [task.sampling for task in job.tasks()]
    assert [one.clip_skip for one in found] == [1, 3, 1, 3]
    assert [one.syntax for one in found] == ["a1111"] * 2 + ["plain"] * 2
    assert [one.emphasis for one in found] == ["comfy"] * 2 + ["a1111"] * 2
    assert [one.long_prompts for one in found] == ["cut"] * 2 + ["chunk"] * 2
    found = [task.sampling for task in load(tmp_path, "prompts: [{file: rows.csv}]").tasks()]
    assert [(one.clip_skip, one.syntax) for one in found] == [(2, "plain"), (1, "a1111")]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            A1111 + "prompts: [a, 'a [b:c:11]']",
            "3:14: prompts[1]: the prompt changes at 11, which is outside its 10 steps "
            "(at character 8)",
        ),
        (
            A1111 + "prompts:\n- {prompt: '(a:1..2)', negative: b}",
            "4:12: prompts[0].prompt: weight '1..2' is no number (at character 4)",
        ),
        (
            A1111 + "prompts:\n- {prompt: a, negative: '(b:1..2)'}",
            "4:25: prompts[0].negative: weight '1..2' is no number (at character 4)",
        ),
        (
            "defaults: {syntax: a1111, negative: '(b:1..2)'}\nprompts: [a, b, {prompt: c}]",
            "2:37: defaults.negative: weight '1..2' is no number (at character 4)",
        ),
        (
            "matrix: {syntax: [plain, a1111], steps: [5, 20]}\nprompts: ['[a:b:9]', '[a:b:5]']",
            "3:11: prompts[0]: the prompt changes at 9, which is outside its 5 steps "
            "(at character 6)",
        ),
        (
            f"prompts: ['{'cat ' * 1201}']",
            "2:11: prompts[0]: 1,201 tokens are more than the 1,200 that can be read; shorten it, "
            "or set long_prompts to cut",
        ),
        (
            "prompts:\n- {prompt: a, emphasis: comfy}",
            "3:25: prompts[0].emphasis: emphasis comfy goes with syntax a1111 only, not plain",
        ),
        (
            "prompts: [{prompt: a, syntax: a11}]",
            "2:31: prompts[0].syntax: found 'a11', expected one of plain, a1111",
        ),
        (
            "prompts: [{prompt: a, clip_skip: 13}]",
            "2:34: prompts[0].clip_skip: found 13, expected a whole number within 1 to 12",
        ),
    ],
)
def test_what_is_wrong_is_said_once_with_its_place(tmp_path, body, message):
    assert messages(tmp_path, body) == [message]


def test_a_flaw_in_a_file_is_said_with_its_line(tmp_path):
    write(tmp_path, "a cat\n(a:1..2)\n", "p.txt")
    write(tmp_path, "prompt\na\n[a:b:11]\n", "r.csv")
    body = A1111 + "prompts: [{file: p.txt}, {file: r.csv}]"
    first, second = messages(tmp_path, body)
    assert first.startswith(f"{tmp_path / 'p.txt'}:2:1: prompt: weight '1..2' is no number")
    assert second.startswith(f"{tmp_path / 'r.csv'}:3:1: prompt: the prompt changes at 11")


def test_what_is_wrong_in_one_syntax_is_text_in_the_other(tmp_path):
    path = write(tmp_path, HEAD + "prompts: ['[a:b:999]', '(a:1..2)', 'a AND b AND c']")
    assert load_manifest(path).total == 3
