"""The manifest in a job's folder that can be run again: the same plan, from the folder alone."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from jobs.folder import resolved_manifest
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.prepare import prepare
from jobs.manifest.load import load_manifest
from jobs.manifest.manifest import Manifest
from jobs.storage import LocalStore
from sd_core.demo import DEMO_SPEC
from sd_core.spec import SEED_LIMIT
from tests.jobs.manifests import picture, write
from tests.sd_core.lora_files import lora_file, lora_tensors

TEXT = """\
version: 1
name: shapes
reproducible: fast
defaults: {width: 64, height: 64, steps: 4, negative: blurry}
prompts:
  - a red circle
  - {prompt: a blue ring, init_image: photos/a.png, mask: photos/b.png, strength: 0.5}
  - {file: lists/prompts.txt, seeds: {start: 5, count: 2}, name: "{prompt}/{seed}"}
  - {file: lists/rows.csv, guidance: 3}
  - {file: lists/rows.jsonl}
matrix: {steps: [2, 3], negative: [grey, ""], guidance: [1, 2.5]}
output: {format: jpg, quality: 80, store: elsewhere, webhook: "https://example.com/hook"}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of manifests, with what they name."""
    folder = tmp_path_factory.mktemp("manifests")
    picture(folder / "photos" / "a.png")
    picture(folder / "photos" / "b.png", (64, 64))
    picture(folder / "lists" / "c.png", (80, 64))
    write(folder, "a star: very bright\nyes\n\n1e5\n", "lists/prompts.txt")
    write(folder, 'prompt,seeds,init_image\n"a, b",1 2 3,c.png\nkreis 円,,\n', "lists/rows.csv")
    write(folder, json.dumps({"prompt": "🎈", "seeds": [2**64 - 1]}), "lists/rows.jsonl")
    return folder


def again(folder, tmp_path, text, *, name="job.yaml", **options):
    """What a manifest gives, and what the one in its job's folder does, moved elsewhere."""
    manifest = load_manifest(write(folder, text, name), **options)
    store, keys = LocalStore(tmp_path / "out"), JobKeys(manifest.job_id())
    prepare(manifest, JobFolder(store, keys))
    moved = tmp_path / "moved"
    shutil.rmtree(moved, ignore_errors=True)
    moved.mkdir()
    shutil.copy(store.root / keys.resolved, moved)
    if (inputs := store.root / keys.job_id / "inputs").is_dir():
        shutil.copytree(inputs, moved / "inputs")
    return manifest, load_manifest(moved / "manifest.resolved.yaml", **options), store.root


def check_same(manifest, other):
    lines = [[task.to_json() for task in of.tasks()] for of in (other, manifest)]
    assert lines[0] == lines[1]
    assert other.job_id() == manifest.job_id()
    assert other.total == manifest.total
    assert other.inputs.keys() == manifest.inputs.keys()


def test_the_same_plan(folder, tmp_path):
    manifest, other, _ = again(folder, tmp_path, TEXT)
    check_same(manifest, other)
    assert other.reproducible == "fast"
    assert other.output.quality == 80
    assert (other.output.store, other.output.webhook) == (None, None)


def test_the_same_loras(tmp_path):
    for number, name in enumerate(("loras/ink", "hollow", "unused")):
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        lora_file(path.parent, lora_tensors(DEMO_SPEC, number, rank=1, parts="attn2"), path.stem)
    for name in ("neg", "easy"):
        save_file({"emb_params": torch.zeros(1, 768)}, tmp_path / f"{name}.safetensors")
    text = f"""\
version: 1
embeddings: {{easy: easy.safetensors, other: {{sha256: {"5a" * 32}}}}}
loras: {{pen: loras/ink.safetensors, far: {{sha256: {"5a" * 32}}}, unused: unused.safetensors}}
defaults: {{width: 64, height: 64, syntax: a1111, loras: [pen]}}
matrix: {{loras: [[], [far, {{name: pen, weight: 0.5, text_weight: 0}}], hollow.safetensors]}}
prompts: [a ring, "a <lora:pen:0.5:-1> easy star", {{prompt: b, loras: []}}, other,
  {{prompt: neg, syntax: plain, embeddings: [neg.safetensors]}}]
"""
    manifest, other, _ = again(tmp_path, tmp_path / "jobs", text)
    check_same(manifest, other)
    assert len(manifest.inputs) == 3  # two embeddings are the same file
    sets = [[], ["far", {"name": "pen", "weight": 0.5, "text_weight": 0.0}], ["hollow"]]
    assert yaml.safe_load(other.source)["matrix"] == {"loras": sets}


def test_the_same_vaes(tmp_path):
    save_file({"decoder.conv_in.weight": torch.zeros(8, 4, 3, 3)}, tmp_path / "soft.safetensors")
    text = f"""\
version: 1
vaes: {{sharp: {{sha256: {"5a" * 32}}}}}
defaults: {{width: 64, height: 64, vae: sharp}}
prompts: [a, {{prompt: b, vae: soft.safetensors}}, {{prompt: c, vae: model}}]
"""
    manifest, other, _ = again(tmp_path, tmp_path / "jobs", text)
    check_same(manifest, other)
    varied = text.replace("prompts:", "matrix: {vae: [model, soft.safetensors]}\nprompts:")
    check_same(*again(tmp_path, tmp_path / "others", varied)[:2])


def test_the_same_models(tmp_path):
    text = """\
version: 1
model: b
matrix: {model: [demo, b], steps: [2, 3]}
prompts: [x, {prompt: y, width: 64}]
"""
    manifest, other, _ = again(tmp_path, tmp_path / "jobs", text)
    check_same(manifest, other)
    assert [part.name for part in other.models] == ["demo", "b"]
    some = text.replace("model: [demo, b], ", "").replace("width: 64", "width: 64, model: c")
    check_same(*again(tmp_path, tmp_path / "others", some)[:2])


def test_the_same_labels(tmp_path):
    """Also texts that look like labels, once those are filled in."""
    text = """\
version: 1
defaults: {width: 64, height: 64, meta: {a: 007}}
output: {name: "{meta.a}-{index}"}
prompts: [x, "$${a} ${a}", {prompt: y, negative: "$${z}", meta: {b: "${a}"}}, "${a}"]
"""
    manifest, other, _ = again(tmp_path, tmp_path / "jobs", text)
    assert manifest.digest == other.digest

    def told(made: Manifest) -> list[tuple[object, ...]]:
        return [(t.prompt, t.negative, t.meta, t.name) for t in made.tasks()]

    assert told(manifest) == told(other)


def test_of_the_resolved_one_the_resolved_one_is_the_same(folder, tmp_path):
    _, other, root = again(folder, tmp_path, TEXT)
    store, keys = LocalStore(tmp_path / "second"), JobKeys(other.job_id())
    prepare(other, JobFolder(store, keys))
    assert store.get(keys.resolved) == (root / keys.resolved).read_bytes() == other.source


def test_it_is_plain_to_read(tmp_path):
    text = """\
version: 1
name: shapes
defaults: {width: 64, height: 72}
prompts: [a red circle, {prompt: "a ring: blue", seed: 7}]
"""
    _, _, root = again(tmp_path, tmp_path, text)
    (path,) = root.glob("*/manifest.resolved.yaml")
    remark, *lines = path.read_text().splitlines()
    assert remark.startswith("# Written by sdbatch")
    assert lines == [
        "version: 1",
        "name: shapes",
        "model: demo",
        "reproducible: exact",
        "defaults: {negative: '', sampler: plms, steps: 50, guidance: 2.0, width: 64, height: 72}",
        "output: {format: png, name: '{index:06d}-s{seed}'}",
        "prompts:",
        "- a red circle",
        "- {prompt: 'a ring: blue', seeds: 7}",
    ]


def test_the_model_of_a_run_is_named(tmp_path):
    text = "version: 1\nname: shapes\nprompts: [a red circle]\n"
    manifest, other, _ = again(tmp_path, tmp_path, text, model="mine")
    check_same(manifest, other)
    assert yaml.safe_load(other.source)["model"] == "mine"


def test_many_prompts_are_in_files_beside_it(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(resolved_manifest, "INLINE_ENTRIES", 100)
    monkeypatch.setattr(resolved_manifest, "PART_BYTES", 2_000)
    monkeypatch.setattr(resolved_manifest, "MAX_LINE_BYTES", 300)
    prompts = [f"  - {{prompt: 'ring {n}', init_image: photos/a.png}}\n" for n in range(200)]
    prompts[50] = f"  - {{prompt: many, seeds: {list(range(0, 400, 2))}}}\n"  # too long for a line
    text = "version: 1\nname: many\nmatrix: {steps: [2, 3]}\nprompts:\n" + "".join(prompts)
    manifest, other, root = again(folder, tmp_path, text)
    check_same(manifest, other)
    items = yaml.safe_load(other.source)["prompts"]
    assert len([item for item in items if "file" in item]) > 5
    assert [item["prompt"] for item in items if "prompt" in item] == ["many"]
    parts = list(root.glob("*/inputs/*.jsonl"))
    assert all(part.stat().st_size <= 2_000 for part in parts)
    before = {part: part.stat().st_mtime_ns for part in parts}
    again(folder, tmp_path, text)
    assert {part: part.stat().st_mtime_ns for part in parts} == before


def test_a_strength_that_only_a_name_shows(folder, tmp_path):
    text = """\
version: 1
prompts:
  - {prompt: a ring, init_image: photos/a.png}
  - {file: lists/prompts.txt, strength: 0.25}
output: {name: "{index}-{strength}"}
"""
    check_same(*again(folder, tmp_path, text)[:2])


PLAIN = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=20)
TRAPS = ["yes", "1:30", "null", "- a", "a: b", "#b", "0x1f", "1e5", "~", "'", "2001-01-01"]
TEXTS = PLAIN | st.sampled_from(TRAPS)
SIDES = st.sampled_from([64, 72, 512])
SEEDS = st.integers(0, SEED_LIMIT - 1)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "negative": TEXTS,
        "seeds": SEEDS
        | st.lists(SEEDS, min_size=1, max_size=3, unique=True)
        | st.fixed_dictionaries({"start": st.integers(0, 9), "count": st.integers(1, 3)}),
        "sampler": st.sampled_from(["ddim"]),
        "steps": st.integers(1, 1000),
        "guidance": st.floats(-1e9, 1e9),
        "width": SIDES,
        "height": SIDES,
        "eta": st.floats(0, 1),
        "init_image": st.just("photos/a.png"),
    },
)
PROMPTS = TEXTS | st.builds(lambda own, text: {**own, "prompt": text}, SETTINGS, TEXTS)
MANIFESTS = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "defaults": st.builds(lambda own: {**own, "sampler": "ddim"}, SETTINGS),
        "prompts": st.lists(PROMPTS, min_size=1, max_size=5),
    },
    optional={
        "matrix": st.fixed_dictionaries(
            {},
            optional={
                "guidance": st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=2, unique=True),
                "negative": st.lists(TEXTS, min_size=1, max_size=2, unique=True),
                "steps": st.lists(st.integers(1, 9), min_size=1, max_size=2, unique=True),
            },
        ),
        "output": st.fixed_dictionaries(
            {}, optional={"name": st.just("{prompt}-{index}"), "format": st.just("webp")}
        ),
    },
)


@settings(max_examples=60, deadline=None)
@given(manifest=MANIFESTS, inline=st.booleans())
@example({"version": 1, "defaults": {"seeds": [0, 1]}, "prompts": ["a", "a"]}, True)
def test_whatever_is_in_it(folder, tmp_path_factory, manifest, inline):
    text = yaml.safe_dump(manifest, allow_unicode=True, sort_keys=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolved_manifest, "INLINE_ENTRIES", 200 if inline else 0)
        one, other, _ = again(folder, tmp_path_factory.mktemp("one"), text, name="any.yaml")
    check_same(one, other)
