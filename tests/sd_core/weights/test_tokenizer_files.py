"""A folder's own tokenizer makes the ids, whichever of transformers' forms it was saved in."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.loaders import TextualInversionLoaderMixin
from safetensors.torch import save_file
from transformers import AddedToken, CLIPTextModel, CLIPTokenizer

from sd_core.engine.sample import sample_latents
from sd_core.loading import load_model
from sd_core.model.tokenizer import (
    MAX_TOKENS,
    PromptTokenizer,
    clip_tokenizer,
    clip_vocabulary,
    tokenize,
)
from sd_core.weights.errors import CheckpointError
from sd_core.weights.export import save_diffusers, single_file_weights
from sd_core.weights.tokenizer_files import read_tokenizer
from tests.sd_core.small import SMALL, small_model

PROMPTS = [
    "",
    "a photo of a cat",
    "a photo of <cat-toy>, <CAT-TOY>!",
    "two<cat-toy>s and my style , a cat  toy",
    "Ünïcode 猫 🐈 don't!",
    "<|endoftext|> inside <|startoftext|>",
    "<|EndOfText|> inside <|StartOfText|>",
    "very " * 80 + "<cat-toy>",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("diffusers") / "small"
    save_diffusers(small_model(), path)
    return path


@pytest.fixture(scope="module")
def digest(folder):
    return load_model(folder).digest


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the folder, whose files may be replaced."""

    def link(source, target):
        (os.link if source.endswith(".safetensors") else shutil.copy)(source, target)

    return shutil.copytree(folder, tmp_path / "copied", copy_function=link)


@pytest.fixture
def place(tmp_path):
    """A tokenizer's folder, in one without a model: CLIP's own in small."""
    path = tmp_path / "tokenizer"
    fresh(SMALL_VOCABULARY).save_pretrained(path)
    return path


def enlarge(folder, entries):
    """Gives the folder's text encoder another number of entries."""
    peer = CLIPTextModel.from_pretrained(folder / "text_encoder")
    peer.resize_token_embeddings(entries)
    with torch.no_grad():
        new = peer.get_input_embeddings().weight[49408:]
        new.copy_(torch.linspace(-0.5, 0.5, new.numel()).view(new.shape))
    (folder / "text_encoder" / "model.safetensors").unlink()
    peer.save_pretrained(folder / "text_encoder")


def ids_of(place, prompts):
    """By transformers."""
    peer = CLIPTokenizer.from_pretrained(place)
    encoded = peer(prompts, padding="max_length", truncation=True, max_length=MAX_TOKENS)
    return encoded.input_ids


def vocabulary_of(count):
    """CLIP's own with the first so many of its merges."""
    pairs = clip_vocabulary()[1][:count]
    symbols = [*list(clip_vocabulary()[0])[: 512 + len(pairs)], "<|startoftext|>", "<|endoftext|>"]
    return {symbol: n for n, symbol in enumerate(symbols)}, pairs


WHOLE_VOCABULARY = vocabulary_of(None)
SMALL_VOCABULARY = vocabulary_of(1000)


def fresh(of):
    """A tokenizer that a test may change."""
    vocabulary, pairs = of
    return CLIPTokenizer(vocab=vocabulary, merges=list(pairs), model_max_length=MAX_TOKENS)


def write_as_version_4(place, marks, config, added=None, of=SMALL_VOCABULARY):
    """Writes what transformers 4 did for the slow tokenizer, as in the published folders."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    vocabulary, pairs = of
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in pairs)]
    (place / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = {
        "vocab.json": vocabulary,
        "special_tokens_map.json": marks,
        "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", **config},
    }
    if added is not None:
        files["added_tokens.json"] = added
    for name, values in files.items():
        if values is not None:
            (place / name).write_text(json.dumps(values))


FLAGS = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
START, END = ({"content": f"<|{name}oftext|>", **FLAGS} for name in ("start", "end"))
MARKS = {"bos_token": START, "eos_token": END, "pad_token": "<|endoftext|>", "unk_token": END}
CONFIG = {
    "add_prefix_space": False,
    "bos_token": {"__type": "AddedToken", **START},
    "eos_token": {"__type": "AddedToken", **END},
    "unk_token": {"__type": "AddedToken", **END},
    "pad_token": "<|endoftext|>",
    "do_lower_case": True,
    "errors": "replace",
    "model_max_length": 77,
    "name_or_path": "openai/clip-vit-large-patch14",
    "special_tokens_map_file": "./special_tokens_map.json",
}
PLAIN_CONFIG = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "model_max_length": 77,
}
DECODER = {
    "49406": {**START, "special": True},
    "49407": {**END, "special": True},
    "49408": {"content": "<cat-toy>", **FLAGS, "special": False},
}

CLIPS_OWN = {
    "no folder": lambda place: shutil.rmtree(place),
    "the first folders": lambda place: write_as_version_4(
        place, MARKS, CONFIG, of=WHOLE_VOCABULARY
    ),
    "later folders": lambda place: write_as_version_4(
        place,
        dict.fromkeys(("bos_token", "eos_token"), None) | {"bos_token": START, "eos_token": END},
        PLAIN_CONFIG | {"added_tokens_decoder": {key: DECODER[key] for key in ("49406", "49407")}},
        of=WHOLE_VOCABULARY,
    ),
    "by transformers 5": lambda place: fresh(WHOLE_VOCABULARY).save_pretrained(place),
}


@pytest.mark.parametrize("name", CLIPS_OWN)
def test_clips_own_tokenizer_changes_no_digest(copied, digest, name):
    CLIPS_OWN[name](copied / "tokenizer")
    loaded = load_model(copied)
    assert loaded.digest == digest
    assert loaded.tokenizer.library is clip_tokenizer()


def added(*tokens, special=False, of=SMALL_VOCABULARY):
    def write(place):
        peer = fresh(of)
        peer.add_tokens(list(tokens), special_tokens=special)
        peer.save_pretrained(place)

    return write


def padded(place):
    peer = fresh(SMALL_VOCABULARY)
    peer.pad_token = "!"
    peer.save_pretrained(place)


def marked(place, **config):
    values = json.loads((place / "tokenizer_config.json").read_text())
    (place / "tokenizer_config.json").write_text(json.dumps(values | config))


OWN = {
    "an added token": added("<cat-toy>"),
    "two": added("my style", "<cat-toy>"),
    "a special one": added("<cat-toy>", special=True),
    "one that takes spaces": added(AddedToken("<cat-toy>", lstrip=True, rstrip=True)),
    "one of whole words": added(AddedToken("cat", single_word=True), "<cat-toy>"),
    "one in the exact case": added(AddedToken("<CAT-TOY>", normalized=False)),
    "another padding": padded,
    "padding on the left": lambda place: marked(place, padding_side="left"),
    "cut on the left": lambda place: marked(place, truncation_side="left"),
    "extra special ones": lambda place: marked(place, extra_special_tokens=["<cat-toy>"]),
    "a special one with a name": lambda place: marked(place, image_token="<cat-toy>"),
    "by transformers 4": lambda place: write_as_version_4(
        place, MARKS, PLAIN_CONFIG | {"added_tokens_decoder": DECODER}
    ),
    "by an early transformers 4": lambda place: write_as_version_4(
        place, MARKS, CONFIG, added={"<cat-toy>": 49408}
    ),
    "numbered elsewhere": lambda place: write_as_version_4(
        place, MARKS, CONFIG, added={"my style": 60000, "<cat-toy>": 50000}
    ),
    "special, by an early transformers 4": lambda place: write_as_version_4(
        place,
        MARKS | {"additional_special_tokens": ["<cat-toy>"]},
        CONFIG,
        added={"<cat-toy>": 49408},
    ),
    "padded by the marks": lambda place: write_as_version_4(
        place, MARKS | {"pad_token": "!"}, CONFIG
    ),
    "padded with an added token": lambda place: write_as_version_4(
        place, MARKS | {"pad_token": "<pad>"}, CONFIG
    ),
    "without marks": lambda place: write_as_version_4(place, None, {}, added={"<cat-toy>": 49408}),
}


@pytest.mark.parametrize("name", OWN)
def test_ids_are_those_of_the_folders_tokenizer(place, name):
    """Its digest is the same in whichever form it is saved: transformers writes another one."""
    OWN[name](place)
    spec = read_tokenizer(place.parent, "CLIPTokenizer")
    assert PromptTokenizer(spec)(PROMPTS) == ids_of(place, PROMPTS)
    peer = CLIPTokenizer.from_pretrained(place)
    shutil.rmtree(place)
    peer.save_pretrained(place)
    again = read_tokenizer(place.parent, "CLIPTokenizer")
    assert again.numbered == spec.numbered
    assert again.digest == spec.digest


SAME = {
    ("an added token", "without marks"),
    ("a special one", "extra special ones", "a special one with a name"),
    # The latter's marks come too late for the added token to count as special.
    ("by an early transformers 4", "special, by an early transformers 4"),
}


def test_tokenizers_that_differ_have_other_digests(place):
    names = collections.defaultdict(list)
    for name, write in OWN.items():
        write(place)
        names[read_tokenizer(place.parent, None).digest].append(name)
        shutil.rmtree(place)
        fresh(SMALL_VOCABULARY).save_pretrained(place)
    assert {tuple(same) for same in names.values() if len(same) > 1} == SAME


def test_digest_of_a_tokenizer_stays_what_it_is(place):
    """Names of pictures depend on it."""
    OWN["by transformers 4"](place)
    assert (
        read_tokenizer(place.parent, None).digest
        == "85277553ed0d87feae89eed02075d2b87c8de5ce19bcfd859848067a551cc303"
    )


def test_pictures_are_those_of_diffusers(copied):
    """A folder as a textual inversion training saves it."""
    added("<cat-toy>", of=WHOLE_VOCABULARY)(copied / "tokenizer")
    enlarge(copied, 49409)
    pipe = StableDiffusionPipeline.from_pretrained(copied, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(
        {k: v for k, v in pipe.scheduler.config.items() if not k.startswith("_")},
        set_alpha_to_one=False,
        clip_sample=False,
    )
    model = load_model(copied, dtype="float32", device="cpu")
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    pictures = []
    for prompt in ("a photo of a cat", "a photo of <cat-toy>"):
        with torch.inference_mode():
            expected = pipe(
                prompt, latents=noise.clone(), width=64, height=64, num_inference_steps=4,
                guidance_scale=7.5, output_type="pt",
            ).images  # fmt: skip
        states = model.encode_prompt([prompt]), model.encode_prompt([""])
        latents = sample_latents(model, noise, *states, sampler="ddim", steps=4, guidance=7.5)
        ours = (model.decode(latents) / 2 + 0.5).clamp(0, 1)
        assert ((ours - expected) * 255).abs().max() < 1
        pictures.append(ours)
    assert not torch.equal(*pictures)
    (copied / "tokenizer").rename(copied / "elsewhere")
    assert load_model(copied).digest != model.digest


def test_tokens_of_several_vectors_are_spelled_out_as_diffusers_does(place):
    added("<cat>", "<cat>_1", "<cat>_2", "<dog>")(place)
    ours = PromptTokenizer(read_tokenizer(place.parent, None))
    prompts = ["a <cat> and a <dog>", "<cat>_1 <cat>", "<cat>_2", "a cat", "<cat><cat> <Cat>"]
    peer = CLIPTokenizer.from_pretrained(place)
    expected = [TextualInversionLoaderMixin().maybe_convert_prompt(p, peer) for p in prompts]
    assert expected[0] == "a <cat> <cat>_1 <cat>_2 and a <dog>"
    assert ours(prompts) == ids_of(place, expected)


def test_smaller_vocabularies(copied):
    """Tiny models that people test with have such."""
    write_as_version_4(copied / "tokenizer", MARKS, CONFIG)
    enlarge(copied, len(SMALL_VOCABULARY[0]))
    loaded = load_model(copied)
    assert loaded.spec.text.vocab_size == 1514
    assert loaded.tokenize(["a cat"]).tolist() == ids_of(copied / "tokenizer", ["a cat"])


def test_single_file_with_further_entries(tmp_path):
    """It has no tokenizer, so CLIP's own ids are used; what is added beside them stays unused."""
    weights = single_file_weights(small_model())
    name = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    weights[name] = torch.cat([weights[name], torch.ones(3, SMALL.text.width)])
    save_file(weights, tmp_path / "a.safetensors")
    loaded = load_model(tmp_path / "a.safetensors")
    assert loaded.spec.text.vocab_size == 49411
    assert loaded.tokenize(PROMPTS).tolist() == tokenize(PROMPTS)
    assert loaded.encode_prompt(["a cat"]).isfinite().all()


def test_export_keeps_the_tokenizer(copied, tmp_path):
    OWN["two"](copied / "tokenizer")
    loaded = load_model(copied, dtype="float32")
    save_diffusers(loaded, tmp_path / "again")
    again = load_model(tmp_path / "again")
    assert again.digest == loaded.digest
    assert torch.equal(again.tokenize(PROMPTS), loaded.tokenize(PROMPTS))


def change(place, name, values):
    path = place / name
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | values) if isinstance(values, dict) else values)


BAD = {
    "no vocabulary": (lambda p: (p / "tokenizer.json").unlink(), "it has no vocabulary"),
    "no merges": (
        lambda p: (OWN["by transformers 4"](p), (p / "merges.txt").unlink()),
        "it has no vocabulary: neither tokenizer.json, nor vocab.json with merges.txt",
    ),
    "odd merges": (
        lambda p: (OWN["by transformers 4"](p), (p / "merges.txt").write_text("a b c\n")),
        "it has a merge of 'a b c'; expected two entries",
    ),
    "merges of nothing": (
        lambda p: (OWN["by transformers 4"](p), (p / "merges.txt").write_text("in nix</w>\n")),
        "it merges 'in' and 'nix</w>', which it has not",
    ),
    "no JSON": (lambda p: change(p, "tokenizer.json", "{"), "not valid JSON"),
    "another model": (
        lambda p: change(p, "tokenizer.json", {"model": {"type": "Unigram"}}),
        "not of a byte-pair encoding",
    ),
    "no numbers": (
        lambda p: change(p, "tokenizer.json", {"model": {"vocab": {"a": "1"}, "merges": []}}),
        "does not number its entries from 0 on",
    ),
    "gaps": (
        lambda p: change(p, "tokenizer.json", {"model": {"vocab": {"a": 0, "b": 2}, "merges": []}}),
        "does not number its entries from 0 on",
    ),
    "no unknown": (
        lambda p: change(p, "tokenizer.json", {"model": {"vocab": {"a": 0}, "merges": []}}),
        "has no '<|endoftext|>', its unk_token",
    ),
    "odd tokens": (
        lambda p: change(p, "tokenizer.json", {"added_tokens": [{"id": 1, "content": 5}]}),
        "it has an added token",
    ),
    "odd numbers": (
        lambda p: change(p, "tokenizer.json", {"added_tokens": [{"id": -1, "content": "a"}]}),
        "it numbers an added token -1",
    ),
    "odd flags": (
        lambda p: marked(p, added_tokens_decoder={"1": {"content": "a", "lstrip": "yes"}}),
        "expected true or false",
    ),
    "odd sides": (lambda p: marked(p, padding_side="top"), "padding_side is 'top'; expected right"),
    "short": (lambda p: marked(p, model_max_length=64), "it cuts prompts after 64 tokens"),
}


@pytest.mark.parametrize("name", BAD)
def test_tokenizers_that_cannot_be_used(place, name):
    write, message = BAD[name]
    write(place)
    with pytest.raises(CheckpointError) as caught:
        read_tokenizer(place.parent, None)
    assert message in str(caught.value)
    assert str(place) in str(caught.value)


def test_tokens_beyond_the_text_encoders(copied):
    added("<cat-toy>", of=WHOLE_VOCABULARY)(copied / "tokenizer")
    with pytest.raises(
        CheckpointError, match="of 49408; expected its tokenizer's 77 tokens of 494"
    ):
        load_model(copied)


def test_tokenizers_of_another_kind(copied):
    change(copied, "model_index.json", {"tokenizer": ["transformers", "BertTokenizer"]})
    with pytest.raises(CheckpointError, match="is a BertTokenizer; expected a CLIPTokenizer"):
        load_model(copied)


def test_what_the_library_refuses(place, monkeypatch, copied):
    def refuse(*_, **__):
        raise Exception("a reason")

    enlarge(copied, 1515)
    OWN["an added token"](copied / "tokenizer")
    monkeypatch.setattr("transformers.CLIPTokenizer", refuse)
    with pytest.raises(CheckpointError, match="its tokenizer cannot be used: a reason"):
        load_model(copied)


def test_any_values_in_the_files_give_a_tokenizer_or_the_one_error(tmp_path):
    """Values of JSON at any place of what is read."""
    rng = random.Random(0)
    values = [None, True, 0, -1, 10**30, "", "a", "!", [], {}, [[]], {"content": "a"}, {"a": 1}]
    small = {"model": {"vocab": {"a": 0, "<|endoftext|>": 1}, "merges": []}, "added_tokens": []}
    place = tmp_path / "tokenizer"
    place.mkdir()
    for _ in range(300):
        whole = json.loads(json.dumps(small))
        name = rng.choice(["model", "vocab", "merges", "added_tokens"])
        rng.choice([whole, whole["model"]])[name] = rng.choice(values)
        keys = ("pad_token", "added_tokens_decoder", "extra_special_tokens", "model_max_length")
        config = {rng.choice(keys): rng.choice(values) for _ in range(2)}
        (place / "tokenizer.json").write_text(json.dumps(whole))
        (place / "tokenizer_config.json").write_text(json.dumps(config))
        with contextlib.suppress(CheckpointError):
            assert read_tokenizer(tmp_path, None).size >= 2
