"""Chunks of prompts against CLIP's tokenizer, and their states against computations by hand."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from sd_core.model.chunks import Chunk, chunks_of
from sd_core.model.tokenizer import (
    DEFAULT_NAMES,
    PromptTokenizer,
    TokenizerSpec,
    clip_tokenizer,
    clip_vocabulary,
)
from sd_core.prompt.conditions import PromptReader, PromptText
from sd_core.vocab.bpe import MOST_CHUNKS
from tests.sd_core.small import ODD, small_model

START, END = 49406, 49407
TOKENIZER = PromptTokenizer()


def text(prompt: str, syntax: str = "plain", **settings) -> PromptText:
    values = {"steps": 4, "long_prompts": "chunk", "emphasis": "a1111", "clip_skip": 1} | settings
    (until,) = PromptReader(syntax=syntax, **values).negative(prompt).texts
    return until.text


def ids(words: str) -> list[int]:
    """By transformers' tokenizer, without start and end."""
    return clip_tokenizer()(words, add_special_tokens=False)["input_ids"]


def words_of(chunk: Chunk) -> list[int]:
    """The ids between start and end."""
    assert (len(chunk.ids), chunk.ids[0]) == (77, START)
    inside = list(chunk.ids[1 : chunk.ids.index(END)])
    assert set(chunk.ids[1 + len(inside) :]) == {END}
    return inside


@pytest.mark.parametrize("prompt", ["", "a cat", "cat " * 75, "Größe, ÉTÉ, 猫"])
@pytest.mark.parametrize("syntax", ["plain", "a1111"])
def test_a_prompt_that_fits_is_what_the_tokenizer_gives(prompt: str, syntax: str):
    (chunk,) = chunks_of(text(prompt, syntax), TOKENIZER)
    assert list(chunk.ids) == TOKENIZER([prompt])[0]
    assert (chunk.weights, chunk.emphasis) == ((), "none")


def test_a_long_plain_prompt_is_read_75_tokens_at_a_time():
    prompt = ", ".join(f"word {n}" for n in range(60))
    chunks = chunks_of(text(prompt), TOKENIZER)
    all_ids = ids(prompt)
    assert len(chunks) == -(-len(all_ids) // 75) == 4
    assert [words_of(chunk) for chunk in chunks] == [
        all_ids[at : at + 75] for at in range(0, len(all_ids), 75)
    ]


@pytest.mark.parametrize("syntax", ["plain", "a1111"])
def test_one_that_is_to_be_cut_is_what_it_always_was(syntax: str):
    prompt = "cat, " * 100
    (chunk,) = chunks_of(text(prompt, syntax, long_prompts="cut"), TOKENIZER)
    assert list(chunk.ids) == TOKENIZER([prompt])[0]


@pytest.mark.parametrize(
    ("before", "after", "first"),
    [
        (60, 40, 61),  # the comma is the 61st token: the chunk ends with it
        (54, 40, 75),  # the 55th: too far from the end
        (55, 40, 56),
        (74, 40, 75),  # the last of the chunk
        (75, 40, 75),  # the first of the next one
    ],
)
def test_a_chunk_ends_at_a_comma_among_its_last_tokens(before: int, after: int, first: int):
    prompt = "cat " * before + ", " + "dog " * after
    chunks = [words_of(chunk) for chunk in chunks_of(text(prompt, "a1111"), TOKENIZER)]
    assert [len(chunk) for chunk in chunks] == [first, before + after + 1 - first]
    assert list(chain(*chunks)) == ids(prompt)


def test_each_section_begins_a_chunk():
    chunks = chunks_of(text("a cat BREAK BREAK (a dog:1.3)", "a1111"), TOKENIZER)
    assert [words_of(chunk) for chunk in chunks] == [ids("a cat"), [], ids("a dog")]


def test_fragments_are_cut_into_tokens_by_themselves_and_weighted():
    (chunk,) = chunks_of(text("photo(graph:1.5) of [it]", "a1111"), TOKENIZER)
    own = ids("photo"), ids("graph"), ids("of"), ids("it")
    assert words_of(chunk) == list(chain(*own))
    weights = [1.0, 1.0, 1.5, 1.0, 1 / 1.1]
    assert chunk.weights[: len(weights)] == pytest.approx(weights)
    assert set(chunk.weights[len(weights) :]) == {1.0}
    assert chunk.emphasis == "a1111"


def test_without_emphasis_brackets_are_read_and_weights_are_not():
    (chunk,) = chunks_of(text("(a cat:1.5)", "a1111", emphasis="none"), TOKENIZER)
    assert (words_of(chunk), chunk.weights, chunk.emphasis) == (ids("a cat"), (), "none")


def test_a_prompt_of_too_many_chunks_is_refused():
    with pytest.raises(
        ValueError, match=f"takes {MOST_CHUNKS + 1} chunks .* at most {MOST_CHUNKS}"
    ):
        chunks_of(text("cat " * (75 * MOST_CHUNKS + 1)), TOKENIZER)


def test_a_tokenizer_that_pads_on_the_left_does_so_in_every_chunk():
    vocabulary, merges = clip_vocabulary()
    spec = TokenizerSpec(vocabulary, merges, DEFAULT_NAMES, (), padding_side="left")
    first, second = chunks_of(text("cat " * 80), PromptTokenizer(spec))
    assert first.ids[0] == START
    assert second.ids[-7:] == (START, *ids("cat " * 5), END)
    (weighted,) = chunks_of(text("(cat:2)", "a1111"), PromptTokenizer(spec))
    assert weighted.weights[-3:] == (1.0, 2.0, 1.0)


@pytest.fixture(scope="module")
def model():
    return small_model(ODD)


class TestStates:
    def test_weights_multiply_and_the_mean_stays(self, model):
        (chunk,) = chunks_of(text("a (red:1.5) [cat]", "a1111"), model.tokenizer)
        plain = model.encode_tokens(torch.tensor([chunk.ids]))
        by_hand = plain.clone()
        by_hand[0, 2] *= 1.5
        by_hand[0, 3] *= 1 / 1.1
        by_hand *= plain.double().mean() / by_hand.double().mean()
        found = model.encode_chunks([chunk])
        assert (found - by_hand).abs().max() <= 1e-5 * by_hand.abs().max()
        assert (found - plain).abs().max() > 1e-3

    def test_in_comfys_way_tokens_move_from_the_empty_prompt(self, model):
        (chunk,) = chunks_of(text("a (red:1.5) cat", "a1111", emphasis="comfy"), model.tokenizer)
        plain = model.encode_tokens(torch.tensor([chunk.ids]))
        empty = model.encode_prompt([""])
        by_hand = plain.clone()
        by_hand[0, 2] = empty[0, 2] + 1.5 * (plain[0, 2] - empty[0, 2])
        found = model.encode_chunks([chunk])
        assert (found - by_hand).abs().max() <= 1e-5 * by_hand.abs().max()
        assert torch.equal(found[0, :2], plain[0, :2])

    @pytest.mark.parametrize("clip_skip", [1, 2, 3])
    def test_a_layer_before_the_last_is_what_diffusers_reads(self, model, clip_skip: int):
        """diffusers counts the layers that it leaves out, and normalises what it reads."""
        ids = model.tokenize(["a cat"])
        out = model.text.transformer(input_ids=ids, output_hidden_states=True)
        skipped = clip_skip - 1
        theirs = out.hidden_states[-(skipped + 1)]
        theirs = model.text.transformer.final_layer_norm(theirs)
        ours = model.encode_tokens(ids, clip_skip)
        assert (ours - theirs).abs().max() <= 1e-5
        if skipped:
            assert not torch.equal(ours, model.encode_tokens(ids))

    @pytest.mark.parametrize("clip_skip", [0, 4])
    def test_a_layer_that_is_not_there_is_refused(self, model, clip_skip: int):
        with pytest.raises(ValueError, match=f"clip_skip is {clip_skip}; .* has 3 layers"):
            model.encode_tokens(model.tokenize(["a cat"]), clip_skip)
