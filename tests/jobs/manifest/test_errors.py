"""Manifests that are wrong: every problem in one go, with its place and what was expected."""

from __future__ import annotations

import os
import struct

import pytest
from PIL import Image

from jobs import limits
from jobs.errors import ManifestError
from jobs.manifest.load import load_manifest
from sd_core import sampler_table
from tests.jobs.manifests import HEAD, load, messages, picture, problems, write

SAMPLERS = ", ".join(sampler_table.SAMPLERS)


def one(folder, body):
    """The only problem of a manifest."""
    (message,) = messages(folder, body)
    return message


def test_all_problems_of_all_files_in_one_go(tmp_path):
    write(tmp_path, "prompt,steps\na,0\nb,5\n,7\n", "rows.csv")
    write(tmp_path, b"not an image", "bad.png")
    body = """\
defaults: {sampler: plmz, steps: 5}
prompts:
  - prompt: a
    seeds: [1, x]
    init_image: bad.png
  - {promt: b}
  - file: rows.csv
matrix: {guidance: 5}
colour: red
"""
    found = [str(p).removeprefix(str(tmp_path) + "/") for p in problems(tmp_path, HEAD + body)]
    assert found == [
        f"job.yaml:2:21: defaults.sampler: found 'plmz', expected one of {SAMPLERS}; "
        "did you mean 'plms'?",
        "job.yaml:5:16: prompts[0].seeds[1]: found 'x', expected a whole number within 0 to "
        "2^64 - 1",
        "job.yaml:6:17: prompts[0].init_image: 'bad.png' is not a PNG, JPEG or WebP image",
        "job.yaml:7:5: prompts[1]: prompt is missing; expected a text of at most 10,000 characters",
        "job.yaml:7:6: prompts[1].promt: unknown key 'promt'; did you mean 'prompt'?",
        "job.yaml:9:20: matrix.guidance: found 5, expected a list of values, each a finite number",
        "job.yaml:10:1: colour: unknown key 'colour'; expected one of version, name, model, "
        "reproducible, defaults, matrix, output, wildcards, budget, loras, embeddings, vaes, "
        "prompts",
        "rows.csv:2:3: steps: found 0, expected a whole number within 1 to 1000",
        "rows.csv:4:1: prompt is missing; expected a text of at most 10,000 characters",
    ]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("seed: -2", "3:21: prompts[0].seed: found -2, expected a whole number within 0"),
        ("seed: -2", "found -2, expected a whole number within 0 to 2^64 - 1, or random"),
        (f"seed: {2**64}", "expected a whole number within 0 to 2^64 - 1"),
        ("seed: 1.0", "found 1.0, expected a whole number"),
        ("seed: true", "found true, expected a whole number"),
        ("seed: '1'", "found '1', expected a whole number"),
        ("seed: ", "found nothing, expected a whole number"),
        ("seed: 9" + "9" * 5000, "found inf, expected a whole number"),
        ("seeds: []", "found an empty list, expected a seed"),
        ("seeds: [1, 2, 1]", "3:29: prompts[0].seeds[2]: seed 1 is in the list twice"),
        ("seeds: {start: 1}", "prompts[0].seeds: count is missing"),
        ("seeds: {start: 1, cuont: 3, count: 2}", "unknown key 'cuont'; did you mean 'count'?"),
        ("seeds: {count: 0}", "found 0, expected a whole number within 1 to 10,000,000"),
        (f"seeds: {{start: {2**64 - 1}, count: 2}}", "the last seed is 18446744073709551616"),
        ("seeds: {count: 10000001}", "expected a whole number within 1 to 10,000,000"),
        ("seed: 1, seeds: [2]", "seed and seeds are both given"),
        ("steps: 0", "found 0, expected a whole number within 1 to 1000"),
        ("steps: 5e1", "found 50.0, expected a whole number"),
        ("guidance: .nan", "found nan, expected a finite number"),
        ("guidance: .inf", "found inf, expected a finite number"),
        ("guidance: 1e999", "found inf, expected a finite number"),
        ("width: 513", "found 513, expected a multiple of 8 within 64 to 4096"),
        ("height: 8192", "found 8192, expected a multiple of 8 within 64 to 4096"),
        ("strength: 0.5", "3:15: prompts[0].strength: strength needs an init_image"),
        ("mask: a.png", "prompts[0].mask: mask needs an init_image"),
        ("init_image: a.png, strength: 1.5", "found 1.5, expected a number within 0 to 1"),
        ("eta: 0.5", "prompts[0].eta: eta 0.5 goes with sampler ddim or tcd only, not plms"),
        ("karras: true", "prompts[0].karras: karras spacing does not go with plms"),
        ("karras: 1", "found 1, expected true or false"),
        ("karras: yes", "found 'yes', expected true or false"),
        ("sampler: [plms]", "found a list, expected one of plms"),
        ("sampler: Eular-A", "did you mean 'euler_a'?"),
        ("sampler: PLMS Karras", "found 'PLMS Karras', expected one of plms, ddim"),
        ("sampler: lcm, steps: 51", "prompts[0].steps: steps 51 is too many for lcm; at most 50"),
        ("schedule: karras", "prompts[0].schedule: karras spacing does not go with plms; with eul"),
        ("sampler: tcd, schedule: beta", "schedule beta does not go with tcd; with it go default"),
        ("sampler: lms, schedule: bata", "schedule: schedule 'bata' is unknown; one of default,"),
        (
            "sampler: lms, schedule: 7",
            "schedule lists noise levels for steps 1, not 50; expected",
        ),
        ("sampler: lms, schedule: true", "schedule: found true, expected one of default, karras,"),
        (
            "variation: {seed: 3, strength: 1, strngth: 0.2}",
            "unknown key 'strngth'; did you mean 'strength'?",
        ),
        (
            "variation: {seed: random, strength: 1}",
            "found 'random', expected a whole number within",
        ),
        ("sampler: lms, schedule: [9, x]", "expected one of default, karras, exponential"),
        ("sampler: lms, schedule: [5, 7], steps: 2", "noise level 5 before 7; expected levels"),
        ("sampler: lms, schedule: [15, 7], steps: 2", "noise level 15 before 7; expected level"),
        ("sampler: lms, schedule: [9, 1.0e-9], steps: 2", "noise level 1e-09 before 0; expected"),
        (
            "sampler: lms, schedule: [9, 7, 0]",
            "schedule lists noise levels for steps 2, not 50",
        ),
        ("sampler: lms Karras, schedule: ays", "has schedule karras in its name, which is not"),
        ("sampler: lms, karras: true, schedule: ays", "ays does not go with karras: true"),
        ("seed: rnd", "found 'rnd', expected a whole number within 0 to 2^64 - 1, or random"),
        ("seeds: -2", "a list of seeds, {start, count}, or random"),
        ("variation: {seed: 1}", "variation: strength is missing; expected a number within 0 to 1"),
        ("variation: {seed: 1, strength: 1.5}", "variation.strength: found 1.5, expected a number"),
        ("variation: {seed: 1, strength: 1}, variation_seed: 2", "variation_seed are both given"),
        ("pag: {layers: mid}", "pag: scale is missing; expected a number within 0 to 100"),
        ("pag: {scale: -1}", "pag.scale: found -1, expected a number within 0 to 100"),
        (
            "pag: {scale: 1, layers: up.9}",
            "pag.layers: found 'up.9', expected names of mid, down.0",
        ),
        ("pag: {scale: 1}, pag_layers: mid, pag_scale: 2", "pag and pag_scale are both given"),
        ("pag: {scale: 1, adaptive: 2}", "unknown key 'adaptive'; expected one of scale, layers"),
        ("freeu: {b1: 1, b3: 2}", "freeu: unknown key 'b3'; expected one of b1, b2, s1, s2"),
        ("freeu: {b1: '1'}", "freeu: b1: found '1', expected a number"),
        ("freeu: {b1: 99}", "freeu: found '99 1 1 1', expected a mapping of b1, b2, s1, s2"),
        ("freeu: 1 2", "found '1 2', expected a mapping of b1, b2, s1, s2, or four numbers"),
        ("apg: {eta: 0, momentum: 1}", "apg: found '0 0 1', expected a mapping of eta, norm_thr"),
        ("variation: 3", "variation: found 3, expected a mapping of seed and strength"),
        ("variation_strength: -1", "variation_strength: found -1, expected a number within 0 to"),
        ("guidance_from: 0.6, guidance_to: 0.4", "0.6 is not below guidance_to 0.4"),
        ("guidance_rescale: 1.1", "guidance_rescale: found 1.1, expected a number within 0 to 1"),
        ("noise: tpu", "noise: found 'tpu', expected one of cpu, gpu"),
        ("strength_rule: comfy", "found 'comfy', expected one of diffusers, a1111"),
        ("eta_noise_seed_delta: -1", "found -1, expected a whole number within 0 to 2^64 - 1"),
        ("seeds: [-1]", "seeds[0]: found -1, expected a whole number within 0"),
        ("seeds: {start: -2, count: 2}", "seeds.start: found -2, expected a whole number within"),
        ("cfg_scale: 7", "unknown key 'cfg_scale'; did you mean 'guidance'?"),
        ("negative_prompt: x", "did you mean 'negative'?"),
        ("W: 512", "did you mean 'width'?"),
        ("store: x", "unknown key 'store' here; it goes under output"),
        ("<<: {steps: 3}", "manifests have no merge keys"),
        ("negative: ", "found nothing, expected a text"),
        ("negative: {subject}", "found a mapping, expected a text"),
        ('negative: "\\a"', "character U+0007 is not allowed"),
        ('init_image: "a\\0.png"', "character U+0000 is not allowed"),
        ("init_image: nope.png", "'nope.png' does not exist"),
        ("init_image: '*.gif'", "'*.gif' has no pictures (.png, .jpg, .jpeg, .webp)"),
        ("init_image: 'x[0-9].png'", "'x[0-9].png' has no pictures (.png, .jpg, .jpeg, .webp)"),
        ("init_image: [a.png, a.png]", "PNG, JPEG or WebP file; a prompt has one: list them in a"),
        ("init_image: ''", "found an empty text, expected the path"),
        ("init_image: s3://b/k.png", "'b' is no bucket name"),
        ("init_image: s3://bucket", "names no object; expected s3://bucket/key"),
        ("init_image: s3://bucket/folder/", "names no object; expected s3://bucket/key"),
        (
            "init_image: 'http://169.254.169.254/latest/meta-data'",
            "is no local file, and no s3://bucket/key either",
        ),
        ("init_image: 'file:///etc/passwd'", "is no local file, and no s3://bucket/key either"),
        ("init_image: " + "x" * 300, "cannot be read: file name too long"),
        ("name: ../x", "has a part that starts with a dot"),
        ("steps: 3, steps: 4", "3:25: prompts[0].steps: key 'steps' is already there, in line 3"),
    ],
)
def test_a_prompts_problem(tmp_path, entry, expected):
    picture(tmp_path / "a.png")
    assert expected in one(tmp_path, f"prompts:\n- {{prompt: a, {entry}}}")


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("-", "3:2: prompts[0]: found nothing, expected a text, or a mapping"),
        ("- ~", "found nothing"),
        ("- [a]", "found a list, expected a text, or a mapping"),
        ("- {prompt: a, file: r.txt}", "prompt and file are both given; take one of them out"),
        ("- " + "x" * 10_001, "the prompt has 10,001 characters, more than 10,000"),
        ("- {prompt: " + "x" * 10_001 + "}", "found a text of 10,001 characters"),
        ('- "\\0"', "character U+0000 is not allowed"),
        ('- "\\x7f"', "character U+007F is not allowed"),
        ("- *x", "'alias *x' found; manifests have no tags, anchors and aliases"),
        ("- &x a", "'anchor &x' found"),
        ("- !!python/object:os.system a", "'tag !!python/object:os.system' found"),
        ("- !!str a", "'tag !!str' found"),
        ("- !local {prompt: a}", "'tag !local' found"),
        ("- {prompt: !!binary aGk=}", "3:12: prompts[0].prompt: 'tag !!binary' found"),
        ("- {file: x.txt}", "'x.txt' does not exist"),
        ("- {file: 'x/*.txt'}", "'x/*.txt' does not exist; there are no wildcards here"),
        ("- a cat: very fluffy", 'quote the text: "a cat: very fluffy"'),
        ("- a cat:", "3:3: prompts[0]: 'a cat' is read as a key, for a ': ' follows"),
        ("- 'say \"a\"': b", 'quote the text: "say \\"a\\": b"'),
        ("- Portrait: 12", 'quote the text: "Portrait: 12"'),
        ("- {prompt: a cat, on a mat}", "unknown key 'on a mat'; a text with ': ' in it"),
        ("- {prompt: a cat, sitting}", "in it needs quotes, in braces also one with a comma"),
        ("- {prompt: a, negative prompt: b}", "did you mean 'negative'?"),
        ("- > a cat", "(a text that starts with > or | needs quotes)"),
        ("- 'a' cat", "and quote a text that starts with a bracket, brace or quote)"),
        ("-a cat\n- b", "(a - that begins an item, and a : after a key, need a"),
        ("- %a", "quote a text that starts with @ ` %"),
        ("- {file: job.yaml}", "has a suffix that is not one of .txt, .csv, .jsonl"),
        ("- {file: 'https://x.org/a.csv'}", "is an address"),
    ],
)
def test_an_items_problem(tmp_path, item, expected):
    write(tmp_path, "a", "r.txt")
    assert expected in one(tmp_path, f"prompts:\n{item}\n")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("prompts:", "2:9: prompts: found nothing, expected a list of prompts"),
        ("prompts: a", "found 'a', expected a list of prompts"),
        ("prompts: {a: b}", "found a mapping, expected a list of prompts"),
        ("prompts: []", "2:10: prompts: found an empty list"),
        ("prompts: &p [a]", "'anchor &p' found"),
        ("prompts: [a]\nprompts: [b]", "key 'prompts' is already there, in line 2"),
        ("steps: 5\nprompts: [a]", "unknown key 'steps' here; it goes under defaults"),
        ("format: png\nprompts: [a]", "it goes under output"),
        ("name: a/b\nprompts: [a]", "expected a name of letters, digits, - _ and ."),
        ("name: .a\nprompts: [a]", "expected a name of letters"),
        ("model: a b\nprompts: [a]", "expected a name from the model list"),
        ("defaults: [a]\nprompts: [a]", "found a list, expected a mapping of settings"),
        ("defaults: {prompt: x}\nprompts: [a]", "unknown key 'prompt'"),
        ("defaults: {karras: true}\nprompts: [a, b]", "2:20: defaults.karras: karras spacing"),
        ("defaults: {init_image: x.png}\nprompts: [a]", "2:24: defaults.init_image: 'x.png' does"),
        ("matrix: {seed: [1]}\nprompts: [a]", "unknown key 'seed'; did you mean 'seeds'?"),
        ("matrix: {seeds: [1, x]}\nprompts: [a]", "matrix.seeds[1]: found 'x', expected a whole"),
        ("matrix: {seeds: [1, 1]}\nprompts: [a]", "matrix.seeds[1]: seed 1 is in the list twice"),
        ("matrix: {seeds: {}}\nprompts: [a]", "matrix.seeds: count is missing; expected a whole"),
        (
            "matrix: {prompt: {from: cat, to: [dog]}}\nprompts: [a cat, a rat]",
            "3:18: prompts[1]: has no 'cat', which matrix replaces",
        ),
        (
            "matrix: {prompt: {from: cat, to: [dog]}}\nprompts: [{prompt: a rat}]",
            "3:20: prompts[0].prompt: has no 'cat', which matrix replaces",
        ),
        (
            "matrix: {prompt: {from: cat, to: [dog, dog]}}\nprompts: [a cat]",
            "2:40: matrix.prompt.to[1]: 'dog' is in the list twice",
        ),
        (
            "matrix: {prompt: [cat, dog]}\nprompts: [a cat]",
            "matrix.prompt: found a list, expected a mapping of from, a text, and to, a list of",
        ),
        (
            "matrix: {prompt: {from: cat}}\nprompts: [a cat]",
            "matrix.prompt: to is missing; expected a list of texts to put there",
        ),
        (
            "matrix: {prompt: {from: cat, to: [dog], by: x}}\nprompts: [a cat]",
            "matrix.prompt.by: unknown key 'by'",
        ),
        ("matrix: {sampler: [DPM++ 2M, k_dpmpp_2m]}\nprompts: [a]", "'dpmpp_2m' is in the list tw"),
        ("matrix: {schedule: [leading, ays]}\nprompts: [a]", "2:20: matrix.schedule: schedule ays"),
        ("matrix: {steps: []}\nprompts: [a]", "found an empty list, expected a list of values"),
        ("matrix: {steps: [5, 6, 5]}\nprompts: [a]", "matrix.steps[2]: 5 is in the list twice"),
        ("matrix: {eta: [0, 0.5]}\nprompts: [a, b]", "2:15: matrix.eta: eta 0.5 goes with"),
        ("matrix: {strength: [1, 0.5]}\nprompts: [a]", "strength is in matrix and needs an init"),
        ("output: {format: gif}\nprompts: [a]", "found 'gif', expected one of png, jpeg, webp"),
        ("budget: {hours: 0}\nprompts: [a]", "budget.hours: found 0, expected a number above 0"),
        ("budget: {money: 5}\nprompts: [a]", "money needs price"),
        ("budget: {price: 5}\nprompts: [a]", "price needs money"),
        ("budget: {images: 1.5}\nprompts: [a]", "expected a whole number of at least 1"),
        ("budget: {days: 1}\nprompts: [a]", "days"),
        ("output: {quality: 90}\nprompts: [a]", "quality goes with format jpeg or webp"),
        ("output: {format: webp, quality: 101}\nprompts: [a]", "expected a whole number within 1"),
        ("output: {store: ''}\nprompts: [a]", "found an empty text, expected a folder or s3"),
        ("prompts: [a]\n---\nprompts: [b]", "3:1: a second document begins here"),
        ("? [a]\n: b\nprompts: [a]", "2:3: a list is a key here"),
    ],
)  # fmt: skip
def test_a_manifests_problem(tmp_path, body, expected):
    assert expected in one(tmp_path, body)


def test_settings_that_do_not_go_together_are_told_at_the_prompts_own(tmp_path):
    body = "defaults: {sampler: euler, karras: true}\nprompts:\n- a\n- {prompt: b, sampler: plms}"
    assert one(tmp_path, body).startswith("5:24: prompts[1].sampler: karras spacing does not go")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ":1:1: is empty; expected a mapping of keys"),
        ("# only a comment\n", "is empty"),
        ("---\n", "is empty"),
        ("- a\n", ":1:1: a list is at the top level; expected a mapping of keys"),
        ("just text", "a text is at the top level"),
        ("prompts: [a]", ":1:1: version is missing; expected 1"),
        ("version: 2\nprompts: [a]", ":1:10: version: found 2, expected 1"),
        ("version: '1'\nprompts: [a]", "found '1', expected 1"),
        ("version: true\nprompts: [a]", "found true, expected 1"),
        ("version: *v\nprompts: [a]", "'alias *v' found"),
        ("!!map {version: 1, prompts: [a]}", "'tag !!map' found"),
        ('version: 1\nprompts: ["a', ":2:13: is not YAML: while scanning a quoted scalar"),
        ("version: 1\nprompts:\n\t- a", ":3:1: is not YAML: while scanning for the next token"),
        ("version: 1\nprompts: [a\n", ":3:1: is not YAML: while parsing a flow sequence"),
        ("version: 1\nprompts:\n- a: b: c", "(a text with ': ' in it needs quotes)"),
        ("version: 1\nprompts:\n- {color} ball", "quote a text that starts with a bracket"),
        ('version: 1\nprompts: ["\\ud83d\\ude00"]', "JSON with ensure_ascii=False does"),
        ("version: 1\nprompts:\n- @home", "quote a text that starts with @"),
        (b"version: 1\nprompts:\n- caf\xe9\n", ":3:6: byte 0xe9 is not UTF-8; save the file as"),
        ("version: 1\nprompts: [ä]".encode("utf-16"), ":1:1: byte 0xff is not UTF-8"),
        (b"version: 1\nprompts: [a\0b]", ":2:12: character U+0000 is not allowed"),
        ("version: 1\nprompts: [\x1b[31m]", "character U+001B is not allowed"),
        ("version: 1\nprompts: " + "[" * 5000, "collections are nested here"),
        ("version: 1\ndefaults: " + "{a: " * 5000, "collections are nested here"),
        (f"version: 1\nprompts: [{{seeds: [{'1, ' * 200_001}]}}]", "more than 200,000 values"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_files_problem(tmp_path, text, expected):
    (problem,) = problems(tmp_path, text)
    assert expected in str(problem)
    assert str(problem).startswith(str(tmp_path / "job.yaml:"))


def test_position_behind_a_chunk_of_the_check(tmp_path):
    filler = f"# {'ä' * 61}\n" * 10_000
    (problem,) = problems(tmp_path, filler.encode() + b"a: \xff")
    assert (problem.line, problem.column) == (10_001, 4)


def test_billion_laughs(tmp_path):
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    found = messages(tmp_path, "\n".join(lines) + "\nprompts: [*a11]")
    assert any("'alias *a11' found" in message for message in found)


class TestRows:
    @pytest.mark.parametrize(
        ("name", "text", "expected"),
        [
            ("r.txt", "", "prompts[0].file: 'r.txt' has no prompts"),
            ("r.txt", " \n\n", "has no prompts"),
            ("r.txt", b"a\nb\xff\n", "r.txt:2:2: byte 0xff is not UTF-8"),
            ("r.txt", "a\nb\0\n", "r.txt:2:1: prompt: character U+0000 is not allowed"),
            ("r.txt", "x" * 300_000, "r.txt:1:1: the line is longer than 256 KiB"),
            ("r.csv", "", "has no prompts"),
            ("r.csv", "prompt\n", "has no prompts"),
            ("r.csv", "promt,seed\na,1\n", "r.csv:1:1: unknown column 'promt'; did you mean"),
            ("r.csv", "prompt,folder\na,1\n", "r.csv:1:8: unknown column 'folder'; expected one"),
            ("r.csv", "prompt,prompt\na,b\n", "r.csv:1:8: column 'prompt' is there twice"),
            ("r.csv", "seed\n1\n", "r.csv:1:1: there is no column 'prompt'"),
            ("r.csv", "prompt,file\na,b.csv\n", "unknown column 'file'"),
            ("r.csv", "prompt,seed\na,1,2\n", "r.csv:2:1: the row has 3 cells, the header 2; a"),
            ("r.csv", "prompt,seed\na\n", "the row has 1 cell"),
            ("r.csv", 'prompt,seed\n"a\nb, c",x\n', "r.csv:3:7: seed: found 'x', expected a whole"),
            ("r.csv", "prompt,steps\na,1.5\n", "r.csv:2:3: steps: found 1.5, expected a whole"),
            ("r.csv", "prompt,seeds\na,1 x\n", "r.csv:2:3: seeds[1]: found 'x', expected a whole"),
            ("r.csv", "prompt,karras\na,yes\n", "karras: found 'yes', expected true or false"),
            ("r.csv", "prompt,strength\na,0.5\n", "r.csv:2:3: strength: strength needs an init"),
            ("r.csv", 'prompt\n"a\nb\n', "r.csv:2:1: is not CSV: unexpected end of data"),
            ("r.jsonl", "", "has no prompts"),
            ("r.jsonl", '{"prompt": "a"}\n{"prompt" "b"}', "r.jsonl:2:11: is not JSON: expecting"),
            ("r.jsonl", "[1]", "r.jsonl:1:1: expected a JSON object"),
            ("r.jsonl", '{"prompt": 3}', "r.jsonl:1:2: prompt: found 3, expected a text"),
            ("r.jsonl", '{"prompt": "a", "stpes": 3}', "r.jsonl:1:17: stpes: unknown key 'stpes'"),
            ("r.jsonl", '{"prompt": "a", "prompt": "b"}', "key 'prompt' is there twice"),
            ("r.jsonl", '{"prompt": "a\\ud800"}', "character U+D800 is not allowed"),
            ("r.jsonl", '{"prompt": "a", "\\ud800": 1}', "r.jsonl:1:1: a key has character U+D800"),
            ("r.jsonl", '{"prompt": "a", "seeds": {"count": 1, "\\udfff": 2}}', "a key has charac"),
            ("r.jsonl", '{"prompt": "a", "\\u0007": 1}', "a key has character U+0007, which"),
            ("r.jsonl", '{"prompt": "a", "guidance": NaN}', "found nan, expected a finite number"),
            ("r.jsonl", '{"prompt": "a", "seed": 1' + "0" * 5000 + "}", "is not JSON that can be"),
            ("r.jsonl", "[" * 200_000, "is not JSON that can be read"),
            ("r.jsonl", '{"prompt": "a", "init_image": "b.png"}', "'b.png' does not exist"),
        ],
    )  # fmt: skip
    def test_problem(self, tmp_path, name, text, expected):
        write(tmp_path, text, name)
        (problem,) = problems(tmp_path, f"{HEAD}prompts: [{{file: {name}}}]")
        assert expected in str(problem)

    def test_every_bad_row_is_told(self, tmp_path):
        write(tmp_path, "prompt,steps\n" + "a,0\na,5\n" * 500, "r.csv")
        found = problems(tmp_path, f"{HEAD}prompts: [{{file: r.csv}}]")
        assert [problem.line for problem in found] == list(range(2, 1002, 2))

    def test_settings_of_the_file_entry_are_told_once(self, tmp_path):
        write(tmp_path, "a\nb\nc\n", "r.txt")
        body = "prompts: [{file: r.txt, karras: true}]"
        assert one(tmp_path, body).startswith("2:33: prompts[0].karras: karras spacing")


class TestPaths:
    @pytest.fixture
    def inside(self, tmp_path):
        picture(tmp_path / "secret.png")
        write(tmp_path, "a", "secret.txt")
        folder = tmp_path / "job"
        folder.mkdir()
        return folder

    @pytest.mark.parametrize(
        "path",
        ["../secret.png", "x/../../secret.png", "{absolute}", "link.png", "link/secret.png"],
    )
    def test_outside(self, inside, path):
        (inside / "link.png").symlink_to("../secret.png")
        (inside / "link").symlink_to("..")
        path = path.format(absolute=inside.parent / "secret.png")
        message = one(inside, f"prompts: [{{prompt: a, init_image: {path}}}]")
        assert "is outside the manifest's folder" in message
        assert "--allow-outside" in message

    def test_rows_outside(self, inside):
        assert "outside" in one(inside, "prompts: [{file: ../secret.txt}]")

    def test_rows_may_not_lead_outside(self, inside):
        write(inside, "prompt,init_image\na,../../secret.png\n", "sub/r.csv")
        assert "outside" in one(inside, "prompts: [{file: sub/r.csv}]")

    def test_loop_of_links(self, inside):
        (inside / "a.png").symlink_to("b.png")
        (inside / "b.png").symlink_to("a.png")
        assert "a.png" in one(inside, "prompts: [{prompt: a, init_image: a.png}]")

    def test_pipe_is_not_waited_for(self, inside):
        os.mkfifo(inside / "a.png")
        os.mkfifo(inside / "r.csv")
        found = messages(inside, "prompts: [{prompt: a, init_image: a.png}, {file: r.csv}]")
        assert ["it is not a regular file" in message for message in found] == [True, True]


class TestImages:
    def test_mask_of_another_size(self, tmp_path):
        picture(tmp_path / "a.png")
        picture(tmp_path / "m.png", (72, 64))
        body = "prompts: [{prompt: a, init_image: a.png, mask: m.png}]"
        assert one(tmp_path, body) == (
            "2:48: prompts[0].mask: mask is 72×64 pixels, its init_image 64×64; "
            "expected the same size"
        )

    def test_damaged(self, tmp_path):
        path = picture(tmp_path / "a.png", (256, 256))
        path.write_bytes(path.read_bytes()[:-40])
        assert "'a.png' is damaged" in one(tmp_path, "prompts: [{prompt: a, init_image: a.png}]")

    def test_other_format(self, tmp_path):
        picture(tmp_path / "a.png", format="BMP")
        message = one(tmp_path, "prompts: [{prompt: a, init_image: a.png}]")
        assert "is not a PNG, JPEG or WebP image" in message

    @pytest.mark.parametrize("limit", [4000, 2000, 500])
    def test_too_many_pixels(self, tmp_path, monkeypatch, limit):
        """Also above the sizes at which Pillow itself warns and refuses."""
        monkeypatch.setattr("jobs.pictures.rules.MAX_IMAGE_PIXELS", limit)
        monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 3000)
        picture(tmp_path / "a.png")
        assert "scale it down" in one(tmp_path, "prompts: [{prompt: a, init_image: a.png}]")

    def test_too_many_bytes(self, tmp_path, monkeypatch):
        monkeypatch.setattr("jobs.manifest.input_images.MAX_IMAGE_BYTES", 100)
        picture(tmp_path / "a.png")
        assert "is larger than" in one(tmp_path, "prompts: [{prompt: a, init_image: a.png}]")

    def test_what_a_worker_could_not_bring_to_its_size(self, tmp_path, monkeypatch):
        def odd(*_: object) -> None:
            raise struct.error("argument out of range")

        monkeypatch.setattr("jobs.pictures.rules.fit", odd)
        picture(tmp_path / "a.png")
        message = one(tmp_path, "prompts: [{prompt: a, init_image: a.png}]")
        assert message.endswith("'a.png' is damaged: argument out of range")

    def test_animation(self, tmp_path):
        frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
        frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
        assert "is an animation" in one(tmp_path, "prompts: [{prompt: a, init_image: a.png}]")


class TestLimits:
    def test_images(self, tmp_path):
        body = "matrix: {steps: [1, 2]}\nprompts:\n- a\n- {prompt: b, seeds: {count: 5000000}}"
        message = one(tmp_path, body)
        assert message == "5:3: prompts[1]: more than 10,000,000 images up to here; split the job"

    def test_combinations(self, tmp_path):
        steps = ", ".join(map(str, range(1, 300)))
        body = f"matrix: {{steps: [{steps}], guidance: [{steps}]}}\nprompts: [a]"
        assert "has 89,401 combinations; at most 10,000 are allowed" in one(tmp_path, body)

    def test_problems(self, tmp_path):
        found = messages(tmp_path, "prompts:\n" + "-\n" * 20_000)
        assert len(found) == limits.MAX_PROBLEMS + 1
        assert found[-1].endswith("reading stopped here, after 10,000 problems")

    def test_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr("jobs.manifest.load.MAX_MANIFEST_BYTES", 2**20)
        write(tmp_path, "x" * (2**20 + 1))
        with pytest.raises(ManifestError, match="it is larger than 1 MiB"):
            load_manifest(tmp_path / "job.yaml")


def test_a_thousand_different_mistakes_are_all_told(tmp_path):
    lines = [f"- {{prompt: a, key{n}: 1, steps: {n + 2000}}}" for n in range(500)]
    assert len(messages(tmp_path, "prompts:\n" + "\n".join(lines))) == 1000


def test_reading_without_libyaml(tmp_path, monkeypatch):
    """PyYAML may be installed without its C part."""
    import yaml

    monkeypatch.setattr("jobs.manifest.yaml_file._LOADER", yaml.SafeLoader)
    assert load(tmp_path, "prompts: [no, {prompt: b, seed: 1}]").total == 2
    assert "4:5" in one(tmp_path, 'prompts:\n- a\n- "b')
    assert "is not YAML" in one(tmp_path, 'prompts: ["\\UFFFFFFFF"]')
    assert "'alias *x' found" in one(tmp_path, "prompts: [*x]")
    assert "a key has character U+D800" in one(tmp_path, 'prompts: [{prompt: a, "\\ud800": 1}]')
    assert "a key has character U+D800" in one(tmp_path, '"\\ud800": 1\nprompts: [a]')
