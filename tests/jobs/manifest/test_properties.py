"""Whatever is in a manifest, the answer is a plan or a list of problems; never a traceback."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.cli import root as cli
from jobs.errors import ManifestError
from jobs.manifest.load import load_manifest
from jobs.manifest.schema import PROMPT_KEYS, TOP_KEYS
from jobs.manifest.warnings import WarningList
from jobs.manifest.yaml_file import YamlFile
from sd_core.sampler_table import DISTILLED_STEPS, SAMPLERS
from tests.jobs.manifests import picture, write

GOOD = {
    "version": 1,
    "name": "shapes",
    "model": "demo",
    "defaults": {"steps": 20, "guidance": 5.0, "negative": "", "seeds": [1, 2]},
    "prompts": [
        "a red circle",
        {"prompt": "a star", "seeds": {"start": 3, "count": 2}, "sampler": "ddim", "eta": 0.5},
        {"prompt": "a ring", "init_image": "a.png", "mask": "a.png", "strength": 0.5, "seed": 0},
        {"file": "rows.csv", "width": 64, "height": 64, "name": "{prompt}-{seed}"},
    ],
    "matrix": {"karras": [False]},
    "output": {"store": "out", "format": "webp", "quality": 90, "name": "{index}"},
}

keys = st.one_of(st.sampled_from([*TOP_KEYS, *PROMPT_KEYS, "file", "<<", "start"]), st.text())
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(),
    st.sampled_from(
        [
            *SAMPLERS,
            "a.png",
            "rows.csv",
            "../a.png",
            "/dev/zero",
            "/",
            ".",
            "s3://b/k",
            "{index",
            "",
        ]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)


words = st.text(max_size=6) | st.sampled_from(
    [
        *(f"--{name}" for name in ("prompt", "negative_prompt", "seed", "n_iter", "batch_size")),
        *("--steps", "--sampler_name", "--tiling", "--subseed", "--ar", "--", "#", "a", "-1", "2"),
        *("0", "1.5", "false", "'", '"', '"a b"', "Euler a", "\\", "99999999"),
    ]
)
SYNTAX = [
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "|",
    ":",
    "1.3",
    "__",
    "--",
    "<lora:",
    ">",
    "BREAK",
    " ",
    "a",
]


@dataclass
class Outcome:
    code: int
    out: str
    err: str


def run(path: Path, command: str = "plan") -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([command, str(path)])
    return Outcome(code, out.getvalue(), err.getvalue())


def check(path: Path) -> None:
    """The command answers, and every problem and warning has a place that is in its file."""
    outcome = run(path)
    assert outcome.code in (0, 2), outcome.err
    assert "Traceback" not in outcome.err
    warnings = WarningList()
    problems = []
    try:
        load_manifest(path, warnings=warnings)
    except ManifestError as error:
        problems = error.problems
    assert bool(problems) == (outcome.code == 2)
    lines = outcome.err.splitlines()
    assert len(lines) == len(warnings) + len(problems) + bool(problems)
    for problem in (*problems, *(warning.first for warning in warnings)):
        assert problem.message
        count = len(Path(problem.file).read_bytes().splitlines()) + 1
        assert 0 <= problem.line <= count, problem
        assert problem.column >= min(problem.line, 1), problem


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifests")
    picture(folder / "a.png")
    write(folder, "prompt,seed\na,1\nb,2\n", "rows.csv")
    return folder


def nodes(value, path=()):
    """Paths of all values inside a value."""
    yield path
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from nodes(item, (*path, key))


@st.composite
def damaged(draw):
    """A good manifest after a few random changes."""
    manifest = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(1, 6))):
        paths = [path for path in nodes(manifest) if path]
        *parents, last = draw(st.sampled_from(paths))
        parent = manifest
        for key in parents:
            parent = parent[key]
        change = draw(st.sampled_from(["replace", "remove", "rename", "add"]))
        if change == "replace":
            parent[last] = draw(values)
        elif change == "remove" and len(paths) > 1:
            del parent[last]
        elif change == "rename" and isinstance(parent, dict):
            parent[draw(keys)] = parent.pop(last)
        elif isinstance(parent, dict):
            parent[draw(keys)] = draw(values)
        else:
            parent.append(draw(values))
        if not manifest:
            break
    return manifest


def test_the_good_one_is_good(folder):
    assert run(write(folder, yaml.safe_dump(GOOD))).code == 0


@given(damaged())
@settings(max_examples=200)
def test_wrong_values(folder, manifest):
    check(write(folder, json.dumps(manifest)))


@given(damaged())
@settings(max_examples=100)
def test_wrong_values_in_block_style(folder, manifest):
    text = yaml.safe_dump(manifest, allow_unicode=True, sort_keys=False)
    check(write(folder, text.encode("utf-8", "surrogatepass")))


@given(values)
def test_anything_at_all(folder, value):
    check(write(folder, json.dumps(value)))


@given(st.data())
@settings(max_examples=200)
def test_damaged_bytes(folder, data):
    text = yaml.safe_dump(GOOD, sort_keys=False).encode()
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.integers(0, 5))
        junk = st.binary(max_size=4) | st.sampled_from(
            [b"&a ", b"*a", b"!!int ", b"!", b"\t", b"\n", b": ", b"- ", b"{", b"}", b"[", b"]"]
        )
        text = text[:start] + data.draw(junk) + text[end:]
    if data.draw(st.booleans()):
        text = text[: data.draw(st.integers(0, len(text)))]
    check(write(folder, text))


@given(st.binary(max_size=200))
def test_random_bytes(folder, data):
    check(write(folder, data))


@given(st.sampled_from([".txt", ".csv", ".jsonl"]), st.binary(max_size=200))
def test_rows_of_random_bytes(folder, suffix, data):
    write(folder, data, f"random{suffix}")
    check(write(folder, f"version: 1\nprompts: [{{file: random{suffix}}}]"))


@given(st.lists(st.lists(words, max_size=8).map(" ".join), max_size=4).map("\n".join))
def test_lines_of_random_options(folder, text):
    write(folder, text.encode("utf-8", "surrogatepass"), "random.txt")
    check(write(folder, "version: 1\nprompts: [{file: random.txt}]"))


@given(st.text('prompt,;seed\t\n"=1.0eE+', max_size=60))
def test_tables_of_random_separators(folder, text):
    write(folder, text, "random.csv")
    check(write(folder, "version: 1\nprompts: [{file: random.csv}]"))
    write(folder, f"prompt;seed;guidance\n{text}", "random.csv")
    check(write(folder, "version: 1\nprompts: [{file: random.csv}]"))


@given(st.lists(st.sampled_from(SYNTAX) | st.text(max_size=5), max_size=30).map("".join))
def test_prompts_of_random_syntax(folder, prompt):
    check(write(folder, json.dumps({"version": 1, "prompts": [prompt * 5]})))


@given(st.lists(st.dictionaries(keys, values, max_size=5), max_size=4))
def test_rows_of_random_objects(folder, rows):
    write(folder, "\n".join(map(json.dumps, rows)), "random.jsonl")
    check(write(folder, "version: 1\nprompts: [{file: random.jsonl}]"))


@given(st.lists(st.lists(st.text(max_size=8), max_size=4), max_size=4))
def test_rows_of_random_cells(folder, rows):
    lines = [",".join(row) for row in [["prompt", "seed", "steps", "karras"], *rows]]
    write(folder, "\n".join(lines).encode("utf-8", "surrogatepass"), "random.csv")
    check(write(folder, "version: 1\nprompts: [{file: random.csv}]"))


@given(
    st.lists(
        st.fixed_dictionaries(
            {"prompt": st.text(st.characters(exclude_categories=["C"]), max_size=20)},
            optional={
                "seeds": st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3, unique=True),
                "steps": st.integers(1, DISTILLED_STEPS),
                "guidance": st.floats(-50, 50),
                "width": st.integers(8, 32).map(lambda n: 8 * n),
                "sampler": st.sampled_from(SAMPLERS),
            },
        ),
        min_size=1,
        max_size=6,
    )
)
def test_good_manifests(folder, prompts):
    """The same job in JSON, block YAML and rows; its tasks are counted and numbered."""
    manifest = {"version": 1, "name": "x", "prompts": prompts}
    rows = {"version": 1, "name": "x", "prompts": [{"file": "good.jsonl"}]}
    write(folder, "\n".join(map(json.dumps, prompts)), "good.jsonl")
    texts = [
        json.dumps(manifest, ensure_ascii=False),
        yaml.safe_dump(manifest, allow_unicode=True),
        json.dumps(rows),
    ]
    loaded = [load_manifest(write(folder, text)) for text in texts]
    assert len({manifest.job_id() for manifest in loaded}) == 1
    first = loaded[0]
    tasks = list(first.tasks())
    assert tasks == list(first.tasks())
    assert [task.index for task in tasks] == list(range(first.total))
    assert [task.prompt for task in tasks] == [
        entry["prompt"].strip() for entry in prompts for _ in entry.get("seeds", [42])
    ]


def test_libyaml_is_used_where_it_is_there():
    """The pure parser is fifty times slower: a million prompts would take an hour."""
    if yaml.__with_libyaml__:
        assert YamlFile.__init__.__globals__["_LOADER"] is yaml.CSafeLoader
