"""Prompts as the UNet's attentions take them, encoded at fixed batch sizes and kept for a while."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from sd_core.engine.adapters import LoraSet
from sd_core.gpu.streams import Side, side_of
from sd_core.model.adapters import adapted
from sd_core.model.chunks import Chunk, chunks_of
from sd_core.model.diffusion import LatentDiffusion
from sd_core.model.embeddings import Embeddings, bringing
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


class _Own(NamedTuple):
    """Additions to the model that an image's prompts are encoded with."""

    loras: LoraSet | None
    embeddings: Embeddings


class _Encoding(NamedTuple):
    """A chunk as it is encoded. loras: that have a part in it. vectors: those of embeddings by
    their ids, which the chunk has.
    """

    chunk: Chunk
    loras: LoraSet | None
    vectors: Mapping[int, Tensor] = {}

    @property
    def key(self) -> tuple[Chunk, Hashable]:
        return self.chunk, None if self.loras is None else self.loras.key


class _Kept(NamedTuple):
    context: list[KeysValues]
    batch: int  # that it was encoded in


class EncodedPrompts:
    """Keys and values of prompts for each attention, from a cache of the latest used."""

    def __init__(self, model: LatentDiffusion) -> None:
        self._model = model
        self._together = TOGETHER[model.device.type]
        self._side: Side = side_of(model.device)
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()  # oldest use first
        self._batches = 0
        self._chunks = lru_cache(maxsize=TEXTS_KEPT)(self._cut)

    def get(
        self,
        conditions: Sequence[Condition],
        loras: LoraSet | None = None,
        embeddings: Embeddings = (),
    ) -> list[RowContext]:
        """Contexts of an image's rows. Those that are not there are encoded, and the device's next
        work waits for it. Raises `ValueError` for a prompt of too many chunks, or a layer that is
        not there.
        """
        own = _Own(_of_prompts(loras), embeddings)
        texts = dict.fromkeys(self._texts(conditions))
        for alike in _alike(self._new(conditions, own)):
            for begin in range(0, len(alike), self._together):
                self._encode(alike[begin : begin + self._together])
        found = {text: self._context(text, own) for text in texts}
        while len(self._kept) > PROMPTS_KEPT:
            self._kept.popitem(last=False)
        return [
            tuple(UntilStep(until.step, found[until.text]) for until in condition.texts)
            for condition in conditions
        ]

    def encode_ahead(
        self,
        waiting: Iterable[tuple[Sequence[Condition], LoraSet | None, Embeddings]],
    ) -> None:
        """Encodes a whole batch of what will be wanted soon, where the device does it beside its
        other work; nothing for fewer. What fails is tried again, and raises, in `get`.
        """
        if self._together == 1:
            return
        with contextlib.suppress(ValueError, RuntimeError, MemoryError):
            new: dict[Hashable, _Encoding] = {}
            for conditions, loras, embeddings in waiting:
                own = _Own(_of_prompts(loras), embeddings)
                new |= {one.key: one for one in self._new(conditions, own)}
            groups = _alike(new.values())
            alike = next((group for group in groups if len(group) >= self._together), None)
            if alike is not None:
                self._encode(alike[: self._together])

    def _cut(self, text: PromptText, embeddings: Embeddings) -> tuple[Chunk, ...]:
        return chunks_of(text, self._model.tokenizer, embeddings)

    def _texts(self, conditions: Iterable[Condition]) -> Iterable[PromptText]:
        return (until.text for condition in conditions for until in condition.texts)

    def _new(self, conditions: Iterable[Condition], own: _Own) -> list[_Encoding]:
        """Encodings that these still need, each once."""
        texts = self._texts(conditions)
        chunks = dict.fromkeys(c for text in texts for c in self._chunks(text, own.embeddings))
        vectors = _vectors(own.embeddings)
        encodings = (_Encoding(chunk, own.loras, vectors) for chunk in chunks)
        return [encoding for encoding in encodings if encoding.key not in self._kept]

    def _context(self, text: PromptText, own: _Own) -> TextContext:
        contexts = []
        for chunk in self._chunks(text, own.embeddings):
            key = _Encoding(chunk, own.loras).key
            self._kept.move_to_end(key)
            context, batch = self._kept[key]
            self._side.wait(batch)
            contexts.append(context)
        return tuple(contexts)

    def _encode(self, encodings: Sequence[_Encoding]) -> None:
        """encodings: of `_alike`, at most a batch."""
        padded = [*encodings, *[encodings[0]] * (self._together - len(encodings))]
        loras = encodings[0].loras
        text, context = ({}, {}) if loras is None else (loras.text, loras.context)
        self._batches += 1
        every = slice(None)
        vectors = {
            number: encoding.vectors[number]
            for encoding in encodings
            for number in encoding.chunk.ids
            if number < 0
        }
        with (
            self._side.work(self._batches) as own,
            bringing(self._model.text.tokens, vectors),
            adapted(self._model.text.adapters, [(every, text)]),
            adapted(self._model.unet.adapters, [(every, context)]),
        ):
            states = self._model.encode_chunks([encoding.chunk for encoding in padded])
            projected = self._model.project_context(states)
            for place, encoding in enumerate(encodings):
                found = [(own(keys[place]), own(values[place])) for keys, values in projected]
                self._kept[encoding.key] = _Kept(found, self._batches)


def _vectors(embeddings: Embeddings) -> dict[int, Tensor]:
    """All vectors by their ids."""
    return {
        number: vector
        for _, one in embeddings
        for number, vector in zip(one.ids, one.vectors, strict=True)
    }


def _of_prompts(loras: LoraSet | None) -> LoraSet | None:
    """Adapters, if they have a part in what prompts become."""
    return loras if loras is not None and (loras.text or loras.context) else None


def _alike(encodings: Iterable[_Encoding]) -> list[list[_Encoding]]:
    """In groups of one emphasis, layer and set of adapters, that are encoded together."""
    groups: dict[Hashable, list[_Encoding]] = {}
    for encoding in encodings:
        chunk, loras = encoding.key
        groups.setdefault((chunk.emphasis, chunk.clip_skip, loras), []).append(encoding)
    return list(groups.values())
