"""The count of tokens without torch is that of the tokenizer that renders."""

from __future__ import annotations

import random

import pytest

from sd_core.model.tokenizer import clip_tokenizer
from sd_core.vocab.bpe import PROMPT_TOKENS, count_tokens, first_word_over, tokens_over

LETTERS = [
    "abc XYZ 019 !?.,;:'-_()[]{}<>|@#$%^&*~`\"\\",
    "äöüßÉÈñøåΣσς ΑΒΓ İẞ",
    "猫犬 日本語ー々〇一二三",
    "🙂👍🏽👨‍👩‍👧‍👦",
    "½²³⅓ⅨⅧ①",
    "'s't're've'm'll'dS",
    "\u0301\u0308e\u030aA\u00a0\u2003\u200b\u2028",
    "кот АБВ עברית العربية हिन्दी ไทย",
]


def reference(text):
    return len(clip_tokenizer()(text)["input_ids"]) - 2  # start and end


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a photograph of an astronaut riding a horse, it's what we'll see",
        "antidisestablishmentarianism, floccinaucinihilipilification",
        "masterpiece, best quality, (ultra-detailed:1.2), 8k, <lora:x:0.8>",
        "don'T they'RE 'vet",
        "a" * 2000,
        "<|endoftext|>a'<|startoftext|>!",
        "e\u0301 \u00e9",
    ],
)
def test_counts_as_the_tokenizer_does(text):
    assert count_tokens(text) == reference(text)


def test_counts_as_the_tokenizer_does_in_any_script():
    chance = random.Random(7)
    for _ in range(1000):
        length = chance.randint(1, 40)
        text = "".join(chance.choice(chance.choice(LETTERS)) for _ in range(length))
        assert count_tokens(text) == reference(text), text


@pytest.mark.parametrize("word", ["cat ", "ä", "7", "!?"])
def test_what_is_cut(word):
    """At the limit exactly, whether the text is short enough to be known at once or not."""
    fits = word * 1000
    while count_tokens(fits) > PROMPT_TOKENS:
        fits = fits[: -len(word)]
    assert tokens_over(fits) == 0
    more = fits + " tree, sky"
    assert tokens_over(more) == count_tokens(more) - PROMPT_TOKENS > 0
    with pytest.raises(ValueError, match="is not cut"):
        first_word_over(fits)


def test_the_first_word_that_is_cut():
    prompt = "cat " * PROMPT_TOKENS + "Lighting, dramatic"
    assert first_word_over(prompt) == "lighting,"
    assert tokens_over(prompt) == 3


def test_words_without_spaces_do_not_take_for_ever():
    """Ten thousand characters are let in; the square of that would be minutes."""
    chance = random.Random(1)
    text = "".join(chance.choice("abcdefghijklmnop") for _ in range(10_000))
    assert 2000 < count_tokens(text) < 10_000
