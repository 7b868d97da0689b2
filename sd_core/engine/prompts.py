"""Prompts as the UNet's attentions take them, encoded at fixed batch sizes and kept for a while."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sd_core.gpu.streams import Side, side_of
from sd_core.model.diffusion import LatentDiffusion
from sd_core.model.layers import KeysValues

PROMPTS_KEPT = 64  # at v1 size about 4 MB each in 16 bits

# Prompts encoded together, always: padded where there are fewer, so that the bits of one do not
# depend on how many came with it. A GPU takes hardly longer for eight than for one.
TOGETHER = {"cpu": 1, "cuda": 8}


class _Kept(NamedTuple):
    context: list[KeysValues]
    batch: int  # that it was encoded in


class EncodedPrompts:
    """Keys and values of prompts for each attention, from a cache of the latest used."""

    def __init__(self, model: LatentDiffusion) -> None:
        self._model = model
        self._together = TOGETHER[model.device.type]
        self._side: Side = side_of(model.device)
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # oldest use first
        self._batches = 0

    def get(self, prompts: Sequence[str]) -> list[list[KeysValues]]:
        """For each prompt, and each attention, keys and values (heads, 77, d). What is not there is
        encoded, and the device's next work waits for it.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._kept]
        for begin in range(0, len(new), self._together):
            self._encode(new[begin : begin + self._together])
        contexts = []
        for prompt in prompts:
            self._kept.move_to_end(prompt)
            context, batch = self._kept[prompt]
            self._side.wait(batch)
            contexts.append(context)
        while len(self._kept) > PROMPTS_KEPT:
            self._kept.popitem(last=False)
        return contexts

    def encode_ahead(self, prompts: Iterable[str]) -> None:
        """Encodes a whole batch of what will be wanted soon, where the device does it beside its
        other work; nothing for fewer. What fails is tried again, and raises, in `get`.
        """
        if self._together == 1:
            return
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._kept]
        if len(new) >= self._together:
            with contextlib.suppress(RuntimeError, MemoryError):
                self._encode(new[: self._together])

    def _encode(self, prompts: Sequence[str]) -> None:
        padded = [*prompts, *[""] * (self._together - len(prompts))]
        self._batches += 1
        with self._side.work(self._batches) as own:
            projected = self._model.project_context(self._model.encode_prompt(padded))
            for place, prompt in enumerate(prompts):
                context = [(own(keys[place]), own(values[place])) for keys, values in projected]
                self._kept[prompt] = _Kept(context, self._batches)
