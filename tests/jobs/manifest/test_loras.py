"""LoRA in manifests: found by name and by path, in lists, sets and tags, or refused where they
stand.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from jobs.errors import ManifestError
from jobs.manifest.load import load_manifest
from jobs.manifest.named_files import FileRules
from jobs.models import ModelSource
from jobs.task import LoraUse
from sd_core.demo import DEMO_SPEC
from tests.jobs.manifests import HEAD, messages, tasks, write
from tests.sd_core.lora_files import lora_file, lora_tensors

OWN = "loras: {ink: loras/ink.safetensors, hollow: hollow.safetensors}\n"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def files(tmp_path):
    """ink and hollow."""
    (tmp_path / "loras").mkdir()
    ink = lora_file(tmp_path / "loras", lora_tensors(DEMO_SPEC, 1, rank=1, parts="attn2"), "ink")
    hollow = lora_file(tmp_path, lora_tensors(DEMO_SPEC, 2, rank=1, parts="attn2"), "hollow")
    return {"ink": ink, "hollow": hollow}


@pytest.fixture
def use(files):
    """A use of one of the files."""

    def made(name: str, weight: float = 1.0, text_weight: float | None = None) -> LoraUse:
        digest = sha256(files[name])
        own = weight if text_weight is None else text_weight
        return LoraUse(name, digest, weight, own, f"{digest}.safetensors")

    return made


def loras(folder: Path, body: str) -> list[tuple[LoraUse, ...]]:
    return [task.loras for task in tasks(folder, OWN + body)]


class TestLists:
    def test_of_names_and_paths_with_weights(self, tmp_path, use):
        body = """\
prompts:
  - a
  - {prompt: a, loras: [ink]}
  - {prompt: a, loras: [{name: ink, weight: 0.5}, hollow.safetensors]}
  - {prompt: a, loras: [{name: ink, weight: -1, text_weight: 0}]}
  - {prompt: a, loras: [{name: ink, text_weight: 2}]}
"""
        assert loras(tmp_path, body) == [
            (),
            (use("ink"),),
            (use("ink", 0.5), use("hollow")),
            (use("ink", -1, 0),),
            (use("ink", 1, 2),),
        ]

    def test_a_prompt_wins_over_its_file_and_that_over_defaults(self, tmp_path, use):
        write(tmp_path, '{"prompt": "a"}\n{"prompt": "b", "loras": []}\n', "rows.jsonl")
        body = """\
defaults: {loras: [ink]}
prompts:
  - a
  - {file: rows.jsonl, loras: [hollow]}
"""
        assert loras(tmp_path, body) == [(use("ink"),), (use("hollow"),), ()]

    @pytest.mark.parametrize("cell", ["ink:0.5 hollow:-1:0.25", '"ink:0.5  hollow:-1:0.25 "'])
    def test_in_a_cell(self, tmp_path, use, cell):
        write(tmp_path, f"prompt,loras\na,{cell}\nb,\n", "rows.csv")
        body = "prompts: [{file: rows.csv}]"
        assert loras(tmp_path, body) == [(use("ink", 0.5), use("hollow", -1, 0.25)), ()]

    def test_paths_are_relative_to_the_file_that_has_them(self, tmp_path, use):
        write(tmp_path, "prompt,loras\na,ink.safetensors\n", "loras/rows.csv")
        assert loras(tmp_path, "prompts: [{file: loras/rows.csv}]") == [(use("ink"),)]

    def test_the_files_go_with_the_job(self, tmp_path, files):
        body = f"{HEAD}{OWN}prompts: [{{prompt: a, loras: [ink]}}]"
        manifest = load_manifest(write(tmp_path, body))
        assert list(manifest.inputs) == [f"{sha256(files['ink'])}.safetensors"]


class TestMatrix:
    def test_sets(self, tmp_path, use):
        body = "matrix: {loras: [[], ink, [{name: ink, weight: 0.5}, hollow]]}\nprompts: [a]"
        assert loras(tmp_path, body) == [
            (),
            (use("ink"),),
            (use("ink", 0.5), use("hollow")),
        ]

    def test_one_at_several_weights(self, tmp_path, use):
        body = (
            "matrix: {loras: {name: ink, weights: [0, 0.5, 1]}}\n"
            "prompts: [{prompt: a, loras: [hollow]}]"
        )
        assert loras(tmp_path, body) == [(use("ink", w),) for w in (0, 0.5, 1)]

    def test_with_tags_beside_them(self, tmp_path, use):
        body = (
            "matrix: {loras: [[], [ink]], syntax: [plain, a1111]}\nprompts: [a <lora:hollow:0.5> b]"
        )
        found = tasks(tmp_path, OWN + body)
        assert [task.loras for task in found] == [
            (),
            (use("hollow", 0.5),),
            (use("ink"),),
            (use("ink"), use("hollow", 0.5)),
        ]
        assert [task.prompt for task in found] == ["a <lora:hollow:0.5> b", "a  b"] * 2


class TestTags:
    """The order of their weights is AUTOMATIC1111's: the text encoder first."""

    @pytest.mark.parametrize(
        ("tag", "weight", "text_weight"),
        [
            ("<lora:ink>", 1, 1),
            ("<lora:ink:0.8>", 0.8, 0.8),
            ("<lora:ink:0.25:0.8>", 0.8, 0.25),
            ("<lora:ink:unet=0.8>", 0.8, 1),
            ("<lora:ink:te=0.25>", 0.25, 0.25),
            ("<lora:ink:te=0:unet=-.5>", -0.5, 0),
            ("<lora:ink:0.5:unet=2>", 2, 0.5),
            ("<LyCO: ink :1.>", 1, 1),
            ("<lora:ink:1e-05>", 1e-5, 1e-5),
        ],
    )
    def test_weights(self, tmp_path, use, tag, weight, text_weight):
        body = f"defaults: {{syntax: a1111}}\nprompts: ['{tag} a ring']"
        (task,) = tasks(tmp_path, OWN + body)
        assert task.loras == (use("ink", weight, text_weight),)
        assert task.prompt == "a ring"

    def test_are_added_to_the_list(self, tmp_path, use):
        body = (
            "defaults: {syntax: a1111}\n"
            "prompts: [{prompt: 'a <lora:ink:0.5>', loras: [hollow, ink]}]"
        )
        assert loras(tmp_path, body) == [(use("hollow"), use("ink"), use("ink", 0.5))]

    def test_may_be_chosen_and_replaced(self, tmp_path, use):
        body = """\
defaults: {syntax: a1111, dynamic: combinatorial}
matrix: {prompt: {from: "0.5", to: ["0.25", "0.75"]}}
prompts: ["a <lora:{ink|hollow}:0.5>"]
"""
        assert loras(tmp_path, body) == [
            (use(name, weight),) for name in ("ink", "hollow") for weight in (0.25, 0.75)
        ]

    def test_are_no_part_of_a_name(self, tmp_path):
        body = (
            "output: {name: '{prompt}'}\nprompts: [{prompt: 'a ring <lora:ink:1>', syntax: a1111}]"
        )
        (task,) = tasks(tmp_path, OWN + body)
        assert task.name == "a-ring"

    def test_in_plain_prompts_are_text(self, tmp_path):
        assert loras(tmp_path, "prompts: [a <lora:ink:x>]") == [()]


class TestTheModelList:
    def load(self, folder, body, listed, limit_bytes=2**30):
        rules = FileRules(lambda: listed, lambda: limit_bytes)
        return list(load_manifest(write(folder, HEAD + body), loras=rules).tasks())

    def test_a_file_here_is_read_for_its_digest_and_stays_here(self, tmp_path, files):
        listed = {"style": ModelSource(str(files["ink"]))}
        path = write(tmp_path, f"{HEAD}prompts: [{{prompt: a, loras: [style]}}]")
        manifest = load_manifest(path, loras=FileRules(lambda: listed))
        (task,) = manifest.tasks()
        assert task.loras == (LoraUse("style", sha256(files["ink"])),)
        assert not manifest.inputs

    @pytest.mark.parametrize("source", ["s3://bucket/a.safetensors", "hf:owner/a/b.pt", "/gone.pt"])
    def test_a_digest_will_do(self, tmp_path, source):
        listed = {"style": ModelSource(source, "5a" * 32)}
        body = "prompts: [{prompt: 'a <lora:style:2>', syntax: a1111}]"
        (task,) = self.load(tmp_path, body, listed)
        assert task.loras == (LoraUse("style", "5a" * 32, 2, 2),)

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("s3://bucket/a.safetensors", "the model list has to say its sha256"),
            ("hf:owner/a/b.pt", "the model list has to say its sha256"),
            ("/gone/a.pt", "'/gone/a.pt' cannot be read: no such file or directory"),
        ],
    )
    def test_what_cannot_be_known(self, tmp_path, source, said):
        listed = {"style": ModelSource(source)}
        with pytest.raises(ManifestError, match=said) as caught:
            self.load(tmp_path, "prompts: [{prompt: a, loras: [style]}]", listed)
        (problem,) = caught.value.problems
        assert (problem.line, problem.column, problem.path) == (2, 31, "prompts[0].loras[0]")

    def test_it_is_not_asked_without_need(self, tmp_path):
        def asked():
            raise AssertionError

        path = write(tmp_path, HEAD + OWN + "prompts: [{prompt: a, loras: [ink]}]")
        load_manifest(path, loras=FileRules(asked))

    def test_one_that_is_larger_than_the_operator_allows(self, tmp_path, files):
        body = f"{OWN}prompts: [{{prompt: a, loras: [ink]}}]"
        with pytest.raises(ManifestError) as caught:
            self.load(tmp_path, body, {}, limit_bytes=files["ink"].stat().st_size - 1)
        assert caught.value.problems[0].path == "loras.ink"
        assert "is larger than 0 MiB" in caught.value.problems[0].message

    def test_two_files_of_one_name(self, tmp_path):
        lora_file(tmp_path, lora_tensors(DEMO_SPEC, 3, rank=1, parts="attn2"), "ink")
        body = "prompts: [{prompt: a, loras: [ink.safetensors, loras/ink.safetensors]}]"
        assert messages(tmp_path, body) == [
            "2:48: prompts[0].loras[1]: two different files are called 'ink'; name them under loras"
        ]


def test_what_has_no_path_is_known_by_its_sha256(tmp_path):
    body = f"loras: {{far: {{sha256: {'5a' * 32}}}}}\nprompts: [{{prompt: a, loras: [far]}}]"
    (task,) = tasks(tmp_path, body)
    assert task.loras == (LoraUse("far", "5a" * 32),)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("{x: gone.safetensors}", "2:12: loras.x: 'gone.safetensors' does not exist"),
        (
            "{x: ink.png}",
            "2:12: loras.x: 'ink.png' ends in none of safetensors, pt, ckpt, bin, pth",
        ),
        ("{x: {}}", "2:12: loras.x: expected a path, a sha256, or both"),
        ("{x: {pth: a.pt}}", "2:13: loras.x.pth: unknown key 'pth'; did you mean 'path'?"),
        ("{x: 5}", "2:12: loras.x: found 5, expected a path, or a mapping of path and sha256"),
        ("{x: [a]}", "2:12: loras.x: found a list, expected "),
        ("[a]", "2:8: loras: found a list, expected a mapping of names to paths"),
        ("{'a:b': hollow.safetensors}", "2:16: loras.a:b: 'a:b' is no name for a LoRA; expected "),
        ("{x: ../a.pt}", "2:12: loras.x: '../a.pt' is outside the manifest's folder"),
    ],
)
def test_mistakes_at_the_top(tmp_path, head, said):
    (found,) = messages(tmp_path, f"loras: {head}\nprompts: [a]")
    assert found.startswith(said)


def test_a_digest_that_is_another_ones(tmp_path, files):
    body = f"loras: {{x: {{path: hollow.safetensors, sha256: {'5a' * 32}}}}}\nprompts: [a]"
    (found,) = messages(tmp_path, body)
    assert found.endswith(f"has sha256 {sha256(files['hollow'])}, not {'5a' * 32}")


LIST = "a list of LoRA: names, or mappings of name, weight, text_weight"
ITEM = "a name or path of a LoRA, or a mapping of name, weight, text_weight"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("imk", f"found 'imk', expected {LIST}"),
        ("[imk]", "[0]: LoRA 'imk' is not known; did you mean 'ink'?"),
        ("[zebra]", "[0]: LoRA 'zebra' is not known; known are ink, hollow (names are under loras"),
        ("[{name: ink, wieght: 1}]", "[0].wieght: unknown key 'wieght'; did you mean 'weight'?"),
        ("[{weight: 1}]", f"[0]: name is missing; expected {ITEM}"),
        ("[[ink]]", f"[0]: found a list, expected {ITEM}"),
        ("[{name: ink, weight: a}]", "[0].weight: found 'a', expected a number within -100 to 100"),
        ("[{name: ink, text_weight: 101}]", "[0].text_weight: found 101, expected a number within"),
        ("[{name: ink, weight: .nan}]", "[0].weight: found nan, expected a number within"),
        (f"[{', '.join(['ink'] * 33)}]", "found 33 LoRA, expected at most 32"),
    ],
)
def test_mistakes_in_a_list(tmp_path, given, said):
    for place, body in (
        ("prompts[0].loras", f"prompts: [{{prompt: a, loras: {given}}}]"),
        ("defaults.loras", f"defaults: {{loras: {given}}}\nprompts: [a]"),
    ):
        (found,) = messages(tmp_path, OWN + body)
        _, _, message = found.partition(f": {place}")
        assert message.removeprefix(": ").startswith(said)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "ink",
            ": found 'ink', expected a list of lists of LoRA, or a mapping of name and weights",
        ),
        ("[[ink], ink]", "[1]: a set is in the list twice"),
        ("[[ink], nope]", "[1][0]: LoRA 'nope' is not known"),
        ("[[{name: ink, weight: x}]]", "[0][0].weight: found 'x', expected a number within"),
        ("{name: ink}", ": weights is missing; expected a list of weights, each a number within"),
        ("{name: nope, weights: [1]}", ".name: LoRA 'nope' is not known"),
        ("{name: ink, weights: [1, x]}", ".weights[1]: found 'x', expected a number within"),
        ("{name: ink, weights: []}", ".weights: found an empty list, expected a list of weights"),
        (
            "{name: ink, weighst: [1], weights: [1]}",
            ".weighst: unknown key 'weighst'; did you mean",
        ),
        ("[]", ": found an empty list, expected a list of lists"),
    ],
)
def test_mistakes_in_a_matrix(tmp_path, given, said):
    (found,) = messages(tmp_path, f"{OWN}matrix: {{loras: {given}}}\nprompts: [a]")
    _, _, message = found.partition(": matrix.loras")
    assert message.startswith(said)


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("<lora:ink:x>", "<lora:ink:x>: 'x' is no weight within -100 to 100 (at character 3)"),
        ("<lora:ink:1e3>", "<lora:ink:1e3>: '1e3' is no weight within"),
        ("<lora:ink:nan>", "<lora:ink:nan>: 'nan' is no weight within"),
        ("<lora:ink:101>", "<lora:ink:101>: '101' is no weight within"),
        ("<lora:ink:>", "<lora:ink:>: '' is no weight within"),
        ("<lora:ink:1:2:3>", "<lora:ink:1:2:3>: it has more than a name and two weights"),
        ("<lora:ink:dyn=3>", "<lora:ink:dyn=3>: 'dyn' is not te or unet"),
        ("<lora:>", "<lora:>: the name is missing"),
        ("<lora:ink", "<lora: is not closed by > (at character 3)"),
        ("<lora:imk:1>", "LoRA 'imk' is not known; did you mean 'ink'?"),
        ("<lora:ink.pt:1>", "LoRA 'ink.pt' is not known"),
    ],
)
def test_mistakes_in_a_tag(tmp_path, tag, said):
    body = f"{OWN}defaults: {{syntax: a1111}}\nprompts: ['a {tag}']"
    (found,) = messages(tmp_path, body)
    assert found.startswith(f"4:11: prompts[0]: {said}")


def test_too_many_in_list_and_tags(tmp_path):
    body = (
        f"prompts: [{{prompt: '<lora:ink:1>', syntax: a1111, loras: [{', '.join(['ink'] * 32)}]}}]"
    )
    (found,) = messages(tmp_path, OWN + body)
    assert found.endswith("33 LoRA are more than 32")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["lora_te1_text_model_a.lora_down.weight"], "it seems to be an adapter for SDXL"),
        (["lora_unet_double_blocks_0.lora_down.weight"], "it seems to be an adapter for Flux or"),
        (["lora_unet_mid_block_attentions_0_proj_in.hada_w1_a"], "it seems to be of LoHa"),
        (["model.diffusion_model.out.2.weight"], "it seems to be no LoRA: it holds model"),
        (
            [f"lora_unet_nowhere_{n}.lora_down.weight" for n in range(5)],
            "5 of its 5 tensors belong to no layer of a Stable Diffusion v1 model that can have a "
            "LoRA: lora_unet_nowhere_0.lora_down.weight, lora_unet_nowhere_1.lora_down.weight, "
            "lora_unet_nowhere_2.lora_down.weight and 2 more",
        ),
    ],
)
def test_files_of_something_else(tmp_path, names, said):
    lora_file(tmp_path, {name: torch.zeros(2, 2) for name in names}, "odd")
    (found,) = messages(tmp_path, "prompts: [{prompt: a, loras: [odd.safetensors]}]")
    assert found.startswith(f"2:31: prompts[0].loras[0]: 'odd.safetensors': {said}")


def test_adapters_for_other_widths(tmp_path):
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
    for width, model in ((1024, "Stable Diffusion 2"), (2048, "SDXL")):
        lora_file(tmp_path, {name: torch.zeros(4, width)}, "odd")
        (found,) = messages(tmp_path, "prompts: [{prompt: a, loras: [odd.safetensors]}]")
        assert f"it seems to be an adapter for {model}; expected one for" in found


@pytest.mark.parametrize(
    "data", [b"\x08\0\0\0\0\0\0\0{not it}", b"\xff\xff\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0{}"]
)
def test_damaged_headers(tmp_path, data):
    write(tmp_path, data, "odd.safetensors")
    (found,) = messages(tmp_path, "prompts: [{prompt: a, loras: [odd.safetensors]}]")
    assert found.startswith("2:31: prompts[0].loras[0]: 'odd.safetensors': ")


def test_the_text_encoder_alone_will_do(tmp_path):
    lora_file(tmp_path, lora_tensors(DEMO_SPEC, 1, rank=1, parts="text."), "te")
    assert len(loras(tmp_path, "prompts: [{prompt: a, loras: [te.safetensors]}]")[0]) == 1


def test_odd_rows_of_json(tmp_path):
    write(tmp_path, json.dumps({"prompt": "a", "loras": [{"name": 5}]}), "rows.jsonl")
    (found,) = messages(tmp_path, f"{OWN}prompts: [{{file: rows.jsonl}}]")
    assert "loras[0].name: found 5, expected a name or path of a LoRA" in found
