"""Prompts from templates: one at random, or all there are."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from random import Random

from jobs.manifest.dynamic.template import (
    MOST_TAKEN,
    Assign,
    Choice,
    Node,
    Option,
    Pool,
    Sequence,
    TemplateError,
    Use,
    Wildcard,
    parse_template,
    pool_of,
)
from jobs.manifest.dynamic.wildcards import Wildcards
from jobs.manifest.entries import Entry

MOST_CHARS = 100_000
"""Characters that a template may grow to while it is filled."""

MOST_WORK = 3_000_000
"""Parts of templates that are looked at for one prompt: variables and wildcards within each other
could make it any number.
"""

Values = Mapping[str, Node]
"""Variables -> what they stand for."""


class Templates:
    """Fills templates with values of these wildcards."""

    def __init__(self, wildcards: Wildcards) -> None:
        self._wildcards = wildcards
        self._pools: dict[str, Pool] = {}
        self._checked: set[str] = set()
        self._work = 0

    def check(self, text: str) -> None:
        """Raises `TemplateError` for a template that cannot be filled."""
        with self._bounded():
            self._check(parse_template(text), frozenset(), ())

    def chosen(self, text: str, seed: int) -> str:
        """One prompt, the same for the same seed of an image. Raises `TemplateError` for one that
        takes too much work, or grows too long.
        """
        digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
        with self._bounded():
            return _tidy(self._choose(parse_template(text), Random(digest[:8]), {}))

    def count(self, text: str) -> int:
        """Prompts that `variants` gives, or more where some are the same. Raises like `chosen`."""
        with self._bounded():
            return self._count(parse_template(text), {})[0]

    def variants(self, text: str) -> Iterator[str]:
        """All prompts, each once, of a template that was counted."""
        seen: set[bytes] = set()
        for words in self._texts(parse_template(text), {}):
            tidy = _tidy(words)
            key = hashlib.sha256(tidy.encode()).digest()[:16]
            if key not in seen:
                seen.add(key)
                yield tidy

    @contextlib.contextmanager
    def _bounded(self) -> Iterator[None]:
        self._work = 0
        try:
            yield
        except RecursionError:
            raise TemplateError("its choices are nested too deep") from None

    def _count_work(self) -> None:
        self._work += 1
        if self._work > MOST_WORK:
            raise TemplateError("its variables and wildcards make too many choices")

    def _of_wildcard(self, node: Wildcard) -> Pool:
        if node.name not in self._pools:
            values = self._wildcards.values(node.name, node.offset)
            try:
                self._pools[node.name] = pool_of(Option(1.0, parse_template(v)) for v in values)
            except TemplateError as error:
                raise _within(node, error) from None
        return self._pools[node.name]

    def _choice(self, node: Choice) -> tuple[Pool, int, int]:
        """Options, least and most of them. One wildcard alone stands for all of its values."""
        only = node.options[0].value if len(node.options) == 1 else None
        pool = self._of_wildcard(only) if isinstance(only, Wildcard) else node.pool
        return pool, node.least, len(pool.options) if node.most is None else node.most

    def _check(self, node: Node, known: frozenset[str], within: tuple[str, ...]) -> frozenset[str]:
        """known: variables that have a value; those that have one after it. within: wildcards."""
        self._count_work()
        match node:
            case Sequence(parts):
                for part in parts:
                    known = self._check(part, known, within)
            case Choice():
                (options, _), _, most = self._choice(node)
                if not len(options) >= most <= MOST_TAKEN:
                    limit = f", and at most {MOST_TAKEN}" if most > MOST_TAKEN else ""
                    counted = f"{len(options)} option{'' if len(options) == 1 else 's'}"
                    message = f"{most} are to be chosen of {counted}{limit}"
                    raise TemplateError(message, node.offset)
                for option in options:
                    self._check(option.value, known, within)
            case Wildcard(name):
                if name in within:
                    circle = " → ".join([*within[within.index(name) :], name])
                    raise TemplateError(f"wildcards go in a circle: {circle}", node.offset)
                if name in self._checked and not known:
                    return known
                for option in self._of_wildcard(node).options:
                    try:
                        self._check(option.value, known, (*within, name))
                    except TemplateError as error:
                        raise _within(node, error) from None
                if not known:
                    self._checked.add(name)
            case Assign(name, value):
                self._check(value, known, within)
                return known | {name}
            case Use(name, otherwise):
                if name not in known and otherwise is None:
                    raise TemplateError(f"variable ${{{name}}} has no value here", node.offset)
                if otherwise is not None:
                    self._check(otherwise, known, within)
        return known

    def _choose(self, node: Node, rng: Random, values: dict[str, Node]) -> str:
        self._count_work()
        match node:
            case str():
                return node
            case Sequence(parts):
                words = "".join([self._choose(part, rng, values) for part in parts])
                if len(words) > MOST_CHARS:
                    raise TemplateError(f"it grows to more than {MOST_CHARS:,} characters")
                return words
            case Choice():
                pool, least, most = self._choice(node)
                picked = _picked(pool, least + int(rng.random() * (most - least + 1)), rng)
                return node.separator.join(
                    [self._choose(option.value, rng, dict(values)) for option in picked]
                )
            case Wildcard():
                (option,) = _picked(self._of_wildcard(node), 1, rng)
                return self._choose(option.value, rng, dict(values))
            case Assign(name, value, once):
                values[name] = self._choose(value, rng, dict(values)) if once else value
                return ""
            case Use(name, otherwise):
                held = values.get(name, otherwise)
                assert held is not None  # see `check`
                return self._choose(held, rng, {k: v for k, v in values.items() if k != name})

    def _count(self, node: Node, values: Values) -> tuple[int, Values]:
        self._count_work()
        match node:
            case Sequence(parts):
                total = 1
                for part in parts:
                    count, values = self._count(part, values)
                    total *= count
                return total, values
            case Choice():
                (options, _), least, most = self._choice(node)
                # Ways to take so many, by the options looked at so far: each is taken or not.
                ways = [1, *[0] * most]
                for option in options:
                    own, _ = self._count(option.value, values)
                    for taken in range(most, 0, -1):
                        ways[taken] += ways[taken - 1] * own
                return sum(ways[least:]), values
            case Wildcard():
                options = self._of_wildcard(node).options
                return sum(self._count(option.value, values)[0] for option in options), values
            case Assign(name, value, once):
                held: Node = "" if once else value
                return (self._count(value, values)[0] if once else 1), {**values, name: held}
            case Use(name, otherwise):
                given = values.get(name, otherwise)
                assert given is not None
                return self._count(given, {k: v for k, v in values.items() if k != name})[0], values
        return 1, values

    def _all(self, node: Node, values: Values) -> Iterator[tuple[str, Values]]:
        match node:
            case str():
                yield node, values
            case Sequence(parts):
                yield from self._sequences(parts, values)
            case Choice():
                (options, _), least, most = self._choice(node)
                for count in range(least, most + 1):
                    for some in itertools.combinations(options, count):
                        for words in self._products(some, values):
                            yield node.separator.join(words), values
            case Wildcard():
                for option in self._of_wildcard(node).options:
                    for text in self._texts(option.value, values):
                        yield text, values
            case Assign(name, value, once):
                for one in self._texts(value, values) if once else (value,):
                    yield "", {**values, name: one}
            case Use(name, otherwise):
                given = values.get(name, otherwise)
                assert given is not None
                inner = {k: v for k, v in values.items() if k != name}
                for text in self._texts(given, inner):
                    yield text, values

    def _texts(self, node: Node, values: Values) -> Iterator[str]:
        """All texts of a node whose variables are its own."""
        return (text for text, _ in self._all(node, values))

    def _sequences(self, parts: tuple[Node, ...], values: Values) -> Iterator[tuple[str, Values]]:
        if not parts:
            yield "", values
            return
        for words, after in self._all(parts[0], values):
            for rest, last in self._sequences(parts[1:], after):
                yield words + rest, last

    def _products(self, some: tuple[Option, ...], values: Values) -> Iterator[tuple[str, ...]]:
        if not some:
            yield ()
            return
        for words in self._texts(some[0].value, values):
            for rest in self._products(some[1:], values):
                yield (words, *rest)


def _within(node: Wildcard, error: TemplateError) -> TemplateError:
    """The error of a wildcard's value, at the place where the wildcard stands."""
    text = str(error)
    if not text.startswith(("in wildcard", "wildcards go")):
        text = f"in wildcard __{node.name}__: {text}"
    return TemplateError(text, node.offset)


def _picked(pool: Pool, count: int, rng: Random) -> list[Option]:
    """So many different options, by their weights."""
    if count == 1:
        at = bisect.bisect_right(pool.upto, rng.random() * pool.upto[-1])
        return [pool.options[min(at, len(pool.options) - 1)]]
    left = list(range(len(pool.options)))
    picked = []
    for _ in range(count):
        point = rng.random() * sum(pool.options[place].weight for place in left)
        at = 0
        while at < len(left) - 1 and point >= pool.options[left[at]].weight:
            point -= pool.options[left[at]].weight
            at += 1
        picked.append(pool.options[left.pop(at)])
    return picked


def _tidy(words: str) -> str:
    """A prompt in one line, without the gaps that empty choices leave."""
    return " ".join(words.split())


def filled(entry: Entry, templates: Templates) -> Iterator[Entry]:
    """The entries that an entry with choices stands for: one for each seed where they are random,
    one for each prompt there is where all are rendered. Raises `TemplateError` for one that grows
    too long.
    """
    if entry.dynamic == "combinatorial":
        for prompt in templates.variants(entry.prompt):
            for negative in templates.variants(entry.negative):
                yield _without_choices(entry, prompt, negative, entry.seeds)
        return
    fixed = isinstance(parse_template(entry.prompt), str)
    if fixed and isinstance(parse_template(entry.negative), str):
        yield _without_choices(entry, entry.prompt, entry.negative, entry.seeds)
        return
    seeds = entry.seeds
    for seed in seeds if isinstance(seeds, list) else range(seeds[0], seeds[0] + seeds[1]):
        prompt, negative = (templates.chosen(t, seed) for t in (entry.prompt, entry.negative))
        yield _without_choices(entry, prompt, negative, [seed])


def count_of(entry: Entry, templates: Templates) -> int:
    """Images of one combination that the entries of `filled` have, or more."""
    variants = 1
    if entry.dynamic == "combinatorial":
        variants = templates.count(entry.prompt) * templates.count(entry.negative)
    return variants * entry.seed_count


def _without_choices(
    entry: Entry, prompt: str, negative: str, seeds: list[int] | tuple[int, int]
) -> Entry:
    written = None if prompt == entry.prompt else entry.prompt
    return entry._replace(
        prompt=prompt, negative=negative, seeds=seeds, dynamic="none", written=written
    )
