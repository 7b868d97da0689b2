"""Reads a diffusers folder's own tokenizer, which fine-tuning may have given further tokens.

It is read into one canonical form, whichever of transformers' file formats it is in: so the digest
of a model does not depend on who saved it, and `sd_core.model.tokenizer` builds it from what was
checked. transformers' own reading decides what the files mean. Within the limits below that takes
at most a few seconds and 400 MB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sd_core.model.tokenizer import DEFAULT_NAMES, MAX_TOKENS, Entry, TokenizerSpec, clip_vocabulary
from sd_core.weights.config_files import Config, read_bounded, read_json
from sd_core.weights.errors import CheckpointError, named, shown
from sd_core.weights.folder_layout import TOKENIZER, TOKENIZER_FILES

MAX_FILE_BYTES = 16 * 2**20
MAX_FILE_VALUES = 1_000_000
"""CLIP's own tokenizer.json has 3.6 MB and some 300,000 values."""

_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
_SIDES = ("right", "left")
_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def read_tokenizer(folder: Path, kind: str | None) -> TokenizerSpec | None:
    """The tokenizer of a pipeline's folder; None where it has none, or CLIP's own.

    kind: its class, by `model_index.json`. Raises `CheckpointError`.
    """
    place = folder / TOKENIZER
    there = [name for name in TOKENIZER_FILES if (place / name).is_file()]
    if not there:
        return None
    if kind is not None and kind not in _CLASSES:
        raise CheckpointError(
            f"{place}: its tokenizer is a {named(kind)}; expected a {_CLASSES[0]}"
        )
    try:
        spec = _Files(place, there).read()
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{place}: {error}") from None
    return None if _is_clips_own(spec) else spec


def _is_clips_own(spec: TokenizerSpec) -> bool:
    """Says whether it makes the ids that CLIP's own makes.

    How start and end are looked for in a prompt is no difference: published folders say it in
    several ways, and no prompt holds them.
    """
    vocabulary, merges = clip_vocabulary()
    return (
        spec.names == DEFAULT_NAMES
        and {entry.content for entry in spec.entries} == set(DEFAULT_NAMES.values())
        and not any(e.single_word or e.lstrip or e.rstrip for e in spec.entries)
        and (spec.padding_side, spec.truncation_side) == (_SIDES[0], _SIDES[0])
        and spec.merges == merges
        and spec.vocabulary == vocabulary
    )


class _Files:
    """A tokenizer's folder. All methods raise `ValueError`."""

    def __init__(self, place: Path, there: list[str]) -> None:
        self._place, self._there = place, there

    def read(self) -> TokenizerSpec:
        config = dict(self._json("tokenizer_config.json"))
        if "additional_special_tokens" in config and not config.get("extra_special_tokens"):
            config["extra_special_tokens"] = config.pop("additional_special_tokens")
        whole = self._json("tokenizer.json")
        vocabulary, merges = self._vocabulary(whole)
        added = self._added(config, whole)
        _check_length(config.get("model_max_length"))
        marked = {name: _entry(config[name]) for name in _NAMES if config.get(name) is not None}
        names = DEFAULT_NAMES | {name: entry.content for name, entry in marked.items()}
        if names["unk_token"] not in vocabulary:
            raise ValueError(f"its vocabulary has no {shown(names['unk_token'])}, its unk_token")
        entries = {entry.content: entry for _, entry in sorted(added.items())}
        roles = [marked.get(name) or _special(names[name]) for name in _NAMES if name in names]
        # Of several that are not among the added tokens, the last one says how it is looked for.
        entries |= {
            entry.content: entry
            for entry in (*roles, *_further(config))
            if entry.content not in entries
        }
        wanted = set(names.values())
        return TokenizerSpec(
            vocabulary=vocabulary,
            merges=merges,
            names=names,
            entries=tuple(
                entry._replace(special=True) if entry.content in wanted else entry
                for entry in entries.values()
                if entry.content
            ),
            padding_side=_side(config, "padding_side"),
            truncation_side=_side(config, "truncation_side"),
        )

    def _json(self, name: str) -> Config:
        if name not in self._there:
            return {}
        return read_json(self._place / name, max_bytes=MAX_FILE_BYTES, max_values=MAX_FILE_VALUES)

    def _vocabulary(self, whole: Config) -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
        model = whole.get("model")
        if whole:
            if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
                raise ValueError("its tokenizer.json is not of a byte-pair encoding, as CLIP's is")
            vocabulary, pairs = model.get("vocab"), _pairs(model.get("merges"))
        elif {"vocab.json", "merges.txt"} <= set(self._there):
            vocabulary = self._json("vocab.json")
            text = read_bounded(self._place / "merges.txt", MAX_FILE_BYTES).decode("utf-8")
            lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
            pairs = _pairs(lines[1:] if "#version:" in lines[0] else lines)
        else:
            raise ValueError(
                "it has no vocabulary: neither tokenizer.json, nor vocab.json with merges.txt"
            )
        if not isinstance(vocabulary, dict) or not _is_numbered(vocabulary.values()):
            raise ValueError("its vocabulary does not number its entries from 0 on")
        merges = tuple(pairs)
        for first, second in merges:
            if not {first, second, first + second} <= vocabulary.keys():
                raise ValueError(f"it merges {shown(first)} and {shown(second)}, which it has not")
        return vocabulary, merges

    def _added(self, config: dict[str, Any], whole: Config) -> dict[int, Entry]:
        """Entries by their number. Changes `config`: special_tokens_map.json overrides it, where
        the older files count at all.
        """
        decoder = config.get("added_tokens_decoder")
        if isinstance(decoder, dict):
            return {_number(number): _entry(entry) for number, entry in decoder.items()}
        marks = self._json("special_tokens_map.json")
        config |= {name: _marked_special(value) for name, value in marks.items()}
        special = {_entry(config[name]).content for name in _NAMES if config.get(name) is not None}
        special |= {entry.content for entry in _entries(config.get("extra_special_tokens"))}
        added = {
            _number(number): Entry(
                content, normalized=content not in special, special=content in special
            )
            for content, number in self._json("added_tokens.json").items()
        }
        listed = whole.get("added_tokens", [])
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise ValueError("its tokenizer.json has no list of added_tokens")
        return added | {_number(entry.get("id")): _entry(entry) for entry in listed}


def _marked_special(value: Any) -> Any:
    return {**value, "special": True} if isinstance(value, dict) and "content" in value else value


def _pairs(listed: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(listed, list):
        raise ValueError("it has no list of merges")
    for merge in listed:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or [type(part) for part in pair] != [str, str]:
            raise ValueError(f"it has a merge of {shown(merge)}; expected two entries")
        yield pair[0], pair[1]


def _is_numbered(numbers: Iterable[Any]) -> bool:
    listed = list(numbers)
    sound = all(isinstance(n, int) and not isinstance(n, bool) for n in listed)
    return sound and sorted(listed) == list(range(len(listed))) and bool(listed)


def _number(value: Any) -> int:
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise ValueError(f"it numbers an added token {shown(value)}")
    return int(text)


def _entry(value: Any) -> Entry:
    """An entry as the files write it: a text, or an object of a text and how it is looked for."""
    if isinstance(value, str):
        return _special(value)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ValueError(f"it has an added token {shown(value)}; expected a text")
    flags = {name: value[name] for name in Entry._fields[1:] if name in value}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise ValueError(f"it has an added token {shown(value)}; expected true or false")
    flags.setdefault("normalized", not flags.get("special", False))
    return Entry(value["content"], **flags)


def _special(content: str) -> Entry:
    return Entry(content, normalized=False, special=True)


def _further(config: Mapping[str, Any]) -> list[Entry]:
    """Special tokens without a role of CLIP's."""
    named_ones = [
        value
        for name, value in config.items()
        if name.endswith("_token") and name not in _NAMES and isinstance(value, str)
    ]
    extra = config.get("extra_special_tokens", config.get("additional_special_tokens"))
    return [*map(_special, named_ones), *_entries(extra)]


def _entries(listed: Any) -> list[Entry]:
    values = list(listed.values()) if isinstance(listed, dict) else listed or []
    if not isinstance(values, list):
        raise ValueError(f"its special tokens are {shown(values)}; expected a list")
    return [_entry(value) for value in values]


def _check_length(length: Any) -> None:
    """diffusers cuts and pads to the tokenizer's length, and transformers writes a huge one for
    none.
    """
    if isinstance(length, int | float) and length < MAX_TOKENS:
        raise ValueError(f"it cuts prompts after {length} tokens; expected {MAX_TOKENS}")


def _side(config: Mapping[str, Any], name: str) -> str:
    side = config.get(name, _SIDES[0])
    if side not in _SIDES:
        raise ValueError(f"its {name} is {shown(side)}; expected {' or '.join(_SIDES)}")
    return str(side)
