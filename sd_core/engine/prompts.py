"""Prompts as the UNet's attentions take them, encoded at fixed batch sizes and kept for a while."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

from sd_core.gpu.streams import Side, side_of
from sd_core.model.chunks import Chunk, chunks_of
from sd_core.model.diffusion import LatentDiffusion
from sd_core.model.layers import KeysValues
from sd_core.prompt.conditions import Condition, PromptText

PROMPTS_KEPT = 64  # chunks of prompts, at v1 size about 4 MB each in 16 bits
TEXTS_KEPT = 256  # prompts that were cut into tokens

# Chunks encoded together, always: padded where there are fewer, so that the bits of one do not
# depend on how many came with it. A GPU takes hardly longer for eight than for one.
TOGETHER = {"cpu": 1, "cuda": 8}

TextContext = tuple[list[KeysValues], ...]
"""Keys and values (heads, 77, d) of each chunk of a text, for each attention."""


class UntilStep(NamedTuple):
    """Context of a row that holds up to a step, the first being 1."""

    step: int
    context: TextContext


RowContext = tuple[UntilStep, ...]


class _Kept(NamedTuple):
    context: list[KeysValues]
    batch: int  # that it was encoded in


class EncodedPrompts:
    """Keys and values of prompts for each attention, from a cache of the latest used."""

    def __init__(self, model: LatentDiffusion) -> None:
        self._model = model
        self._together = TOGETHER[model.device.type]
        self._side: Side = side_of(model.device)
        self._kept: OrderedDict[Chunk, _Kept] = OrderedDict()  # oldest use first
        self._batches = 0
        cut = partial(chunks_of, tokenizer=model.tokenizer)
        self._chunks = lru_cache(maxsize=TEXTS_KEPT)(cut)

    def get(self, conditions: Sequence[Condition]) -> list[RowContext]:
        """Contexts of rows. Those that are not there are encoded, and the device's next work waits
        for it. Raises `ValueError` for a prompt of too many chunks, or a layer that is not there.
        """
        texts = dict.fromkeys(self._texts(conditions))
        chunks = dict.fromkeys(chunk for text in texts for chunk in self._chunks(text))
        new = [chunk for chunk in chunks if chunk not in self._kept]
        for alike in _alike(new):
            for begin in range(0, len(alike), self._together):
                self._encode(alike[begin : begin + self._together])
        found = {text: self._context(text) for text in texts}
        while len(self._kept) > PROMPTS_KEPT:
            self._kept.popitem(last=False)
        return [
            tuple(UntilStep(until.step, found[until.text]) for until in condition.texts)
            for condition in conditions
        ]

    def encode_ahead(self, conditions: Iterable[Condition]) -> None:
        """Encodes a whole batch of what will be wanted soon, where the device does it beside its
        other work; nothing for fewer. What fails is tried again, and raises, in `get`.
        """
        if self._together == 1:
            return
        with contextlib.suppress(ValueError, RuntimeError, MemoryError):
            texts = self._texts(conditions)
            chunks = dict.fromkeys(chunk for text in texts for chunk in self._chunks(text))
            new = [chunk for chunk in chunks if chunk not in self._kept]
            alike = next((a for a in _alike(new) if len(a) >= self._together), None)
            if alike is not None:
                self._encode(alike[: self._together])

    def _texts(self, conditions: Iterable[Condition]) -> Iterable[PromptText]:
        return (until.text for condition in conditions for until in condition.texts)

    def _context(self, text: PromptText) -> TextContext:
        contexts = []
        for chunk in self._chunks(text):
            self._kept.move_to_end(chunk)
            context, batch = self._kept[chunk]
            self._side.wait(batch)
            contexts.append(context)
        return tuple(contexts)

    def _encode(self, chunks: Sequence[Chunk]) -> None:
        """chunks: of one emphasis and layer, at most a batch."""
        padded = [*chunks, *[chunks[0]] * (self._together - len(chunks))]
        self._batches += 1
        with self._side.work(self._batches) as own:
            projected = self._model.project_context(self._model.encode_chunks(padded))
            for place, chunk in enumerate(chunks):
                context = [(own(keys[place]), own(values[place])) for keys, values in projected]
                self._kept[chunk] = _Kept(context, self._batches)


def _alike(chunks: Iterable[Chunk]) -> list[list[Chunk]]:
    """The chunks in groups that are encoded alike."""
    groups: dict[tuple[str, int], list[Chunk]] = {}
    for chunk in chunks:
        groups.setdefault((chunk.emphasis, chunk.clip_skip), []).append(chunk)
    return list(groups.values())
