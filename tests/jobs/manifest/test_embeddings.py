"""Embeddings in manifests: found where prompts name them, or refused where they stand."""

from __future__ import annotations

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from jobs.errors import ManifestError
from jobs.manifest.load import load_manifest
from jobs.manifest.named_files import FileRules
from jobs.models import ModelSource
from jobs.task import EmbeddingUse
from tests.jobs.manifests import HEAD, load, messages, tasks, write

OWN = "embeddings: {ink: emb/ink.safetensors, easy negative: bad.safetensors}\n"


@pytest.fixture(autouse=True)
def digests(tmp_path):
    """By name the sha256 of the files."""
    (tmp_path / "emb").mkdir()
    found = {}
    for seed, (name, path) in enumerate((("ink", "emb/ink"), ("easy negative", "bad"))):
        file = tmp_path / f"{path}.safetensors"
        save_file({"emb_params": torch.full((2, 768), float(seed))}, file)
        found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


@pytest.fixture
def use(digests):
    return lambda name: EmbeddingUse(name, digests[name], f"{digests[name]}.safetensors")


def named(folder, body):
    return [task.embeddings for task in tasks(folder, OWN + body)]


def test_by_name_in_prompts_of_a1111(tmp_path, use):
    body = """\
defaults: {syntax: a1111}
prompts:
  - an INK ring
  - {prompt: "a [ring:(ink:1.2):0.5]", negative: "easy negative, blurry"}
  - inky rings
  - {prompt: an ink ring, syntax: plain}
"""
    assert named(tmp_path, body) == [
        (use("ink"),),
        (use("ink"), use("easy negative")),
        (),
        (),
    ]


def test_by_a_list_in_any_syntax(tmp_path, use, digests):
    write(tmp_path, "prompt,embeddings\nan ink ring,ink bad.safetensors\n", "rows.csv")
    body = """\
prompts:
  - {prompt: an ink ring, embeddings: [ink]}
  - {prompt: an ink ring, embeddings: [emb/ink.safetensors]}
  - {prompt: a ring, embeddings: [ink]}
  - {file: rows.csv}
"""
    assert named(tmp_path, body) == [(use("ink"),), (use("ink"),), (), (use("ink"),)]


def test_a_path_is_called_by_its_file(tmp_path, digests):
    body = "prompts: [{prompt: a bad ring, embeddings: [bad.safetensors]}, a bad ring]"
    digest = digests["easy negative"]
    listed = (EmbeddingUse("bad", digest, f"{digest}.safetensors"),)
    assert [task.embeddings for task in tasks(tmp_path, body)] == [listed, ()]


def test_only_those_that_are_named_go_with_the_job(tmp_path, digests):
    body = f"{OWN}prompts: [{{prompt: an ink ring, syntax: a1111}}]"
    assert list(load(tmp_path, body).inputs) == [f"{digests['ink']}.safetensors"]


def test_with_every_combination(tmp_path, use):
    body = "matrix: {syntax: [plain, a1111], negative: ['', ink]}\nprompts: [a ring]"
    assert named(tmp_path, body) == [(), (), (), (use("ink"),)]


def test_of_the_model_list(tmp_path, digests):
    rules = FileRules(lambda: {"pen": ModelSource("s3://bucket/pen.pt", "5a" * 32)})
    body = f"{HEAD}prompts: [{{prompt: a pen, syntax: a1111}}, a pen]"
    manifest = load_manifest(write(tmp_path, body), embeddings=rules)
    assert [task.embeddings for task in manifest.tasks()] == [(EmbeddingUse("pen", "5a" * 32),), ()]


def test_one_whose_digest_is_not_known(tmp_path):
    rules = FileRules(lambda: {"pen": ModelSource("s3://bucket/pen.pt")})
    body = f"{HEAD}prompts: [{{prompt: a pen, syntax: a1111}}, {{prompt: a, embeddings: [pen]}}]"
    with pytest.raises(ManifestError) as caught:
        load_manifest(write(tmp_path, body), embeddings=rules)
    assert [str(one).partition("job.yaml:")[2] for one in caught.value.problems] == [
        f"2:{place}: embedding 'pen' is at s3://bucket/pen.pt: the model list has to say its "
        "sha256, as {source: …, digest: …}"
        for place in ("20: prompts[0].prompt", "68: prompts[1].embeddings[0]")
    ]


def test_more_in_a_prompt_than_an_image_can_have(tmp_path):
    listed = {f"name{chr(97 + n // 26)}{chr(97 + n % 26)}": "5a" * 32 for n in range(65)}
    own = ", ".join(f"{name}: {{sha256: {sha256}}}" for name, sha256 in listed.items())
    body = f"embeddings: {{{own}}}\nprompts: [{{prompt: {' '.join(listed)}, syntax: a1111}}]"
    (found,) = messages(tmp_path, body)
    assert found == "3:20: prompts[0].prompt: 65 embeddings are named; at most 64 may be"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ink", "found 'ink', expected a list of names or paths of embeddings"),
        ("[imk]", "[0]: embedding 'imk' is not known; did you mean 'ink'?"),
        ("[{name: ink}]", "[0]: found a mapping, expected a name or path of an embedding"),
        ("[gone.pt]", "[0]: 'gone.pt' does not exist"),
        (f"[{', '.join(['ink'] * 65)}]", "found 65 embeddings, expected at most 64"),
    ],
)
def test_mistakes_in_a_list(tmp_path, given, said):
    for place, body in (
        ("prompts[0].embeddings", f"prompts: [{{prompt: a, embeddings: {given}}}]"),
        ("defaults.embeddings", f"defaults: {{embeddings: {given}}}\nprompts: [a]"),
    ):
        (found,) = messages(tmp_path, OWN + body)
        _, _, message = found.partition(f": {place}")
        assert message.removeprefix(": ").startswith(said)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("{x: gone.pt}", "2:17: embeddings.x: 'gone.pt' does not exist"),
        ("{x: {pth: a.pt}}", "2:18: embeddings.x.pth: unknown key 'pth'; did you mean 'path'?"),
        ("{x: 5}", "2:17: embeddings.x: found 5, expected a path, or a mapping of path and"),
        ("{x: {path: 5.5, sha256: y}}", "2:37: embeddings.x.sha256: found 'y', expected 64 hex"),
        ("[a]", "2:13: embeddings: found a list, expected a mapping of names to paths"),
    ],
)
def test_mistakes_at_the_top(tmp_path, head, said):
    (found,) = messages(tmp_path, f"embeddings: {head}\nprompts: [a]")
    assert found.startswith(said)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"clip_g": (1, 1280), "clip_l": (1, 768)}, "it is an embedding for SDXL"),
        ({"emb_params": (1, 1024)}, "it is an embedding for Stable Diffusion 2"),
        ({"a": (1,), "b": (1,)}, "it seems to be no embedding: it holds a, b"),
        ({"emb_params": (76, 768)}, "it has 76 vectors; expected 1 to 75"),
    ],
)
def test_files_of_something_else(tmp_path, tensors, said):
    save_file({n: torch.zeros(shape) for n, shape in tensors.items()}, tmp_path / "x.safetensors")
    (found,) = messages(tmp_path, "prompts: [{prompt: a, embeddings: [x.safetensors]}]")
    assert f"'x.safetensors': {said}" in found
