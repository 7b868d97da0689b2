"""Embeddings in the engine: an image's own, in any batch, against vectors put in by hand."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from diffusers.loaders import TextualInversionLoaderMixin
from safetensors.torch import save_file

from sd_core import Embedding, Engine, Request, Sampling, make_ready
from sd_core.model.chunks import chunks_of
from sd_core.model.embeddings import TokenVectors, bringing
from sd_core.model.tokenizer import PromptTokenizer, clip_tokenizer
from sd_core.prompt.conditions import PromptReader
from sd_core.prompt.embedding_names import EmbeddingNames
from sd_core.weights.embeddings import read_embedding
from sd_core.weights.errors import CheckpointError
from tests.sd_core.small import ODD, small_model

WIDTH = ODD.text.width
SAMPLING = Sampling(width=64, height=64, steps=2, guidance=5.0)


def vectors(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)) * 0.5


def embedding(folder: Path, count: int = 3, seed: int = 1, name: str = "ink") -> Embedding:
    path = folder / f"{name}.safetensors"
    save_file({"emb_params": vectors(count, seed)}, path)
    return Embedding.of(path)


@pytest.fixture(scope="module")
def engine():
    with Engine(make_ready(small_model(ODD), execution="eager")) as engine:
        yield engine


class TestNames:
    @pytest.mark.parametrize(
        ("text", "places"),
        [
            ("ink", ["ink"]),
            ("an INK, drawing", ["INK"]),
            ("inky think", []),
            ("ink2 2ink (ink:1.2) ink_a", ["ink", "ink", "ink", "ink"]),
            ("ink-wash ink wash", ["ink-wash", "ink"]),
            ("<pen> pen a<pen>b", ["<pen>", "<pen>"]),
            ("Тушь İink", ["ink"]),
            ("", []),
        ],
    )
    def test_stand_as_words(self, text, places):
        names = EmbeddingNames(["ink", "ink-wash", "<pen>"])
        assert [text[one.begin : one.end] for one in names.find(text)] == places

    def test_of_other_scripts(self):
        names = EmbeddingNames(["Тушь", "墨 v2"])
        assert [one.name for one in names.find("рисунок Тушь, 墨 v2")] == ["Тушь", "墨 v2"]


def chunks(text: str, *, syntax: str = "plain", count: int = 3):
    known = (("ink", TokenVectors(tuple(range(-5, -5 - count, -1)), vectors(count))),)
    (condition,) = PromptReader(syntax, 2, "chunk", "a1111", 1).prompt(text)
    return chunks_of(condition.texts[0].text, PromptTokenizer(), known)


class TestChunks:
    def test_vectors_stand_for_the_name(self):
        (found,) = chunks("a ink ring")
        plain = PromptTokenizer()(["a ring"])[0]
        assert found.ids == (*plain[:2], -5, -6, -7, *plain[2:-3])

    def test_without_the_name_nothing_changes(self):
        (found,) = chunks("a ring")
        assert list(found.ids) == PromptTokenizer()(["a ring"])[0]

    @pytest.mark.parametrize("syntax", ["plain", "a1111"])
    def test_they_are_never_split_over_two(self, syntax):
        first, second = chunks("cat " * 73 + "ink dog", syntax=syntax)
        assert min(first.ids) > 0
        assert second.ids[1:4] == (-5, -6, -7)
        (whole,) = chunks("cat " * 72 + "ink", syntax=syntax)
        assert whole.ids[73:76] == (-5, -6, -7)

    def test_each_has_the_weight_of_the_name(self):
        (found,) = chunks("a (ink:1.5) ring", syntax="a1111")
        assert found.weights[1:6] == (1.0, 1.5, 1.5, 1.5, 1.0)


def by_hand(model, ids: list[int], count: int) -> torch.Tensor:
    """States of a prompt whose ids after the first word give way to vectors."""
    table = model.text.tokens.weight
    inputs = table[torch.tensor(ids)]
    inputs[2 : 2 + count] = vectors(count)
    text = model.text.transformer
    positions = text.embeddings.position_embedding.weight
    hidden = (inputs + positions)[None]
    mask = torch.full((77, 77), -torch.inf).triu(1)[None, None]
    for layer in text.encoder.layers:
        hidden = layer(hidden, attention_mask=mask)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    return text.final_layer_norm(hidden)


def test_the_states_are_those_of_the_vectors(engine, tmp_path):
    model, one = engine.model, embedding(tmp_path)
    known = (("ink", TokenVectors((-1, -2, -3), read_embedding(one.file, WIDTH))),)
    (condition,) = PromptReader("plain", 2, "chunk", "a1111", 1).prompt("a ink ring")
    (chunk,) = chunks_of(condition.texts[0].text, model.tokenizer, known)
    with bringing(model.text.tokens, dict(zip((-1, -2, -3), vectors(3), strict=True))):
        found = model.encode_chunks([chunk])
    placed = model.tokenizer.framed(
        [*model.tokenizer.ids("a"), 0, 0, 0, *model.tokenizer.ids("ring")]
    )
    with torch.inference_mode():
        wanted = by_hand(model, placed, 3)
    assert (found - wanted).abs().max() < 1e-5


def test_an_image_has_its_own_in_any_batch(engine, tmp_path):
    ink, pen = embedding(tmp_path), embedding(tmp_path, 1, 2, "pen")
    other = Embedding(pen.file, pen.sha256, "ink")
    requests = [
        Request("a ink ring", SAMPLING),
        Request("a ink ring", SAMPLING, embeddings=(ink,)),
        Request("a ink ring", SAMPLING, embeddings=(other,)),
        Request("a ink ring", SAMPLING, embeddings=(ink, pen), negative="pen"),
        Request("a ring", SAMPLING, embeddings=(ink,)),
        Request("a ring", SAMPLING),
    ]
    together = [f.result().pixels for f in [engine.submit(request) for request in requests]]
    for request, pixels in zip(requests, together, strict=True):
        assert (engine.submit(request).result().pixels == pixels).all()
    different = {pixels.tobytes() for pixels in together}
    assert len(different) == 5
    assert (together[4] == together[5]).all()


def test_what_fails_fails_its_image_only(engine, tmp_path):
    good, bad = embedding(tmp_path), embedding(tmp_path, seed=9, name="bad")
    bad.file.write_bytes(b"other")
    failed = engine.submit(Request("a bad ring", SAMPLING, embeddings=(bad,)))
    fine = engine.submit(Request("a ink ring", SAMPLING, embeddings=(good,)))
    assert fine.result().exact
    with pytest.raises(CheckpointError, match="it has sha256"):
        failed.result()
    bad.file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        engine.submit(Request("a bad ring", SAMPLING, embeddings=(bad,))).result()


class TestFiles:
    def test_of_the_webui_and_of_diffusers(self, tmp_path):
        save_file({"emb_params": vectors(2)}, tmp_path / "a.safetensors")
        save_file({"<ink>": vectors(2)}, tmp_path / "b.safetensors")
        torch.save(
            {
                "string_to_token": {"*": 265},
                "string_to_param": {"*": vectors(2)},
                "name": "ink",
                "step": 500,
                "sd_checkpoint": None,
            },
            tmp_path / "c.pt",
        )
        torch.save({"<ink>": vectors(2)}, tmp_path / "d.bin")
        for path in sorted(tmp_path.iterdir()):
            assert torch.equal(read_embedding(path, WIDTH), vectors(2))

    def test_of_one_vector_in_16_bits(self, tmp_path):
        torch.save({"<ink>": vectors(1)[0].half()}, tmp_path / "a.bin")
        assert torch.equal(read_embedding(tmp_path / "a.bin", WIDTH), vectors(1).half().float())

    @pytest.mark.parametrize(
        ("tensors", "said"),
        [
            (
                {"clip_g": torch.zeros(1, 1280), "clip_l": torch.zeros(1, 768)},
                "is an embedding for SDXL",
            ),
            ({"emb_params": torch.zeros(1, 1024)}, "it is an embedding for Stable Diffusion 2; "),
            ({"emb_params": torch.zeros(1, 7)}, "its vectors have width 7; the text encoder has "),
            ({"emb_params": torch.zeros(76, WIDTH)}, "it has 76 vectors; expected 1 to 75"),
            ({"emb_params": torch.zeros(0, WIDTH)}, "it has 0 vectors; expected 1 to 75"),
            ({"emb_params": torch.full((1, WIDTH), torch.nan)}, "numbers that are not finite"),
            ({"emb_params": torch.zeros(1, WIDTH).int()}, "emb_params is torch.int32; expected "),
            ({"emb_params": torch.zeros(1, 1, WIDTH)}, "emb_params is (1, 1, "),
            ({"a": torch.zeros(1), "b": torch.zeros(1)}, "no embedding: it holds a, b"),
        ],
    )
    def test_of_something_else(self, tmp_path, tensors, said):
        save_file(tensors, tmp_path / "a.safetensors")
        with pytest.raises(CheckpointError) as caught:
            read_embedding(tmp_path / "a.safetensors", WIDTH)
        assert said in str(caught.value)

    def test_that_would_run_code(self, tmp_path):
        (tmp_path / "a.pt").write_bytes(pickle.dumps({"string_to_param": print}))
        with pytest.raises(CheckpointError):
            read_embedding(tmp_path / "a.pt", WIDTH)


class TestRequests:
    @pytest.mark.parametrize(
        ("sha256", "name"),
        [("5a", "ink"), ("5a" * 32, ""), ("5a" * 32, " ink"), ("5a" * 32, "x" * 201)],
    )
    def test_of_odd_values(self, sha256, name):
        with pytest.raises(ValueError, match="is not"):
            Embedding(Path("a.pt"), sha256, name)

    def test_of_two_by_one_name(self, tmp_path):
        one = embedding(tmp_path)
        with pytest.raises(ValueError, match="two embeddings have one name"):
            Request("a", SAMPLING, embeddings=(one, Embedding(one.file, one.sha256, "INK")))

    def test_the_digest_says_which(self, tmp_path):
        one = embedding(tmp_path)
        plain = Request("ink", SAMPLING)
        digests = {
            plain.digest(),
            Request("ink", SAMPLING, embeddings=(one,)).digest(),
            Request("ink", SAMPLING, embeddings=(Embedding(one.file, "5a" * 32, "ink"),)).digest(),
        }
        assert len(digests) == 3


class TheirPipeline(TextualInversionLoaderMixin):
    """diffusers' reader of embeddings, with the text encoder of a model."""

    components: ClassVar = {}
    hf_device_map = None

    def __init__(self, model) -> None:
        self.tokenizer = copy.deepcopy(clip_tokenizer())
        self.text_encoder = copy.deepcopy(model.text.transformer)
        table = self.text_encoder.embeddings.token_embedding
        table.__class__ = torch.nn.Embedding

    def states(self, prompt: str) -> torch.Tensor:
        spelt = self.maybe_convert_prompt(prompt, self.tokenizer)
        ids = self.tokenizer(spelt, padding="max_length", return_tensors="pt").input_ids
        with torch.inference_mode():
            return self.text_encoder(ids).last_hidden_state


@pytest.mark.parametrize("count", [1, 3])
def test_as_diffusers_reads_it(engine, tmp_path, count):
    torch.save({"<ink>": vectors(count)}, tmp_path / "ink.bin")
    theirs = TheirPipeline(engine.model)
    theirs.load_textual_inversion(str(tmp_path / "ink.bin"))
    ids = tuple(range(-1, -1 - count, -1))
    found = read_embedding(tmp_path / "ink.bin", WIDTH)
    (condition,) = PromptReader("plain", 2, "chunk", "a1111", 1).prompt("a <ink> ring, in red")
    known = (("<ink>", TokenVectors(ids, found)),)
    (chunk,) = chunks_of(condition.texts[0].text, engine.model.tokenizer, known)
    with bringing(engine.model.text.tokens, dict(zip(ids, found, strict=True))):
        states = engine.model.encode_chunks([chunk])
    assert (states - theirs.states("a <ink> ring, in red")).abs().max() < 1e-5
