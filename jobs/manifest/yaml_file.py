"""YAML as data: events to small nodes that know their line and column.

Read by the rules of YAML 1.2's core schema, so `no`, `1:30` and `1_000` are texts, as they look.
Nothing is built from tags, nothing is expanded from aliases, and a long list is read one item at a
time, so memory and time stay in proportion to the file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, NoReturn

import yaml
from yaml import events as ev

from jobs.formatting import quote
from jobs.limits import MAX_NESTING, MAX_VALUES
from jobs.manifest.problems import Path, ProblemList, join_path
from jobs.manifest.scalars import Scalar, check_text, scalar, unreadable
from jobs.manifest.yaml_comments import Comment, comments

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is fifty times as fast

_HINTS = {  # part of libyaml's or PyYAML's message -> what to do about it
    "mapping values are not allowed": "a text with ': ' in it needs quotes",
    "cannot start any token": "indent with spaces, not tabs; quote a text that starts with @ ` %",
    "tab character": "indent with spaces, not tabs",
    "simple key": "a - that begins an item, and a : after a key, need a space after them",
    "alias": "a text that starts with * needs quotes",
    "anchor": "a text that starts with & needs quotes",
    "tag": "a text that starts with ! needs quotes",
    "directive": "a text that starts with % needs quotes",
    "Unicode character escape": "write the character itself; JSON with ensure_ascii=False does",
    "quoted scalar": "a closing quote is missing",
    "block scalar": "a text that starts with > or | needs quotes",
    "block": "check the indentation, and quote a text that starts with a bracket, brace or quote",
    "flow": "a bracket is not closed, or a text with brackets, braces or commas needs quotes",
}


_NO_KEYS: dict[str, tuple[int, int]] = {}  # shared, for a million nodes have none


Doubt = Callable[[str, Path, int, int, str], None]
"""Called with a kind, a scalar's path, line and column from 1, and a text.

    comment  the text is a comment that follows the scalar and may have been meant as a part of it
    joined   the scalar's lines are joined to this text, where a list may have been meant
"""


class Node:
    """A value and its place.

    value: a scalar, a list of nodes, or a dict of nodes by key.
    text: a scalar as it is written, so that `007` can be taken as a text; None for collections.
    line, column: of its first character, counted from 1.
    keys: of a mapping, where each key is written.
    """

    __slots__ = ("column", "keys", "line", "text", "value")

    def __init__(self, value: Any, text: str | None, line: int, column: int) -> None:
        self.value: Scalar | list[Node] | dict[str, Node] = value
        self.text = text
        self.line = line
        self.column = column
        self.keys: dict[str, tuple[int, int]] = {} if type(value) is dict else _NO_KEYS


class YamlFile:
    """One YAML document whose top level is a mapping.

    Problems that do not stop the reading go to `problems`; syntax errors raise `ManifestError`.
    doubt: told of plain scalars that may not be what they look.
    """

    def __init__(
        self, source: bytes, file: str, problems: ProblemList, doubt: Doubt | None = None
    ) -> None:
        check_text(source, file, problems)
        self._doubt = doubt
        self._comments: Iterator[Comment] = iter(())
        self._comment: Comment | None = None  # the next one
        self._source = source
        self._file = file
        self._problems = problems
        self._values = 0  # in memory at a time
        self._foreign = False  # whether what is being read holds more than plain data

    def mapping(self, *, streamed: str | None = None) -> tuple[Node, set[str]]:
        """The top level, and the keys that were left out for an alias, anchor or tag in them.

        streamed: a key whose value is not read here; its node has the place and, of a collection,
            an empty value.
        """
        events = self._events()
        start = self._document(events)
        self._check_plain_data(start, ())
        top = _node_at(start, {}, None)
        broken: set[str] = set()
        for event in events:
            if isinstance(event, ev.MappingEndEvent):
                break
            key = self._key(event, top, ())
            self._values, self._foreign = 0, False
            value = next(events)
            if key is None:
                self._skip(value, events)
                continue
            if key == streamed:
                self._check_plain_data(value, (key,))
                node = self._skip(value, events)
            else:
                node = self._node(value, events, (key,))
            top.keys.setdefault(key, _position(event))
            if self._foreign:
                broken.add(key)
            elif isinstance(top.value, dict):
                top.value.setdefault(key, node)
        for event in events:  # read on, for errors after the end of the mapping
            if isinstance(event, ev.DocumentStartEvent):
                self._problem(event, (), "a second document begins here; a file is one")
                break
        return top, broken

    def items(self, key: str) -> Iterator[tuple[Node, bool]]:
        """The items of the list under a top-level key, one at a time.

        False comes with an item that has an alias, anchor or tag in it: it is not what it looks.
        """
        events = self._events()
        self._document(events)
        for event in events:
            value = next(events)
            if isinstance(event, ev.ScalarEvent) and event.value == key:
                break
            self._skip(value, events)
        for number, event in enumerate(events):
            if isinstance(event, ev.SequenceEndEvent):
                return
            self._values, self._foreign = 0, False
            node = self._node(event, events, (key, number))
            yield node, not self._foreign

    def _events(self) -> Iterator[ev.Event]:
        if self._doubt is not None:
            self._comments = comments(self._source)
            self._comment = next(self._comments, None)
        try:
            yield from yaml.parse(self._source, Loader=_LOADER)
        except yaml.YAMLError as error:
            self._syntax_error(error)
        except (ValueError, OverflowError) as error:  # PyYAML's scanner, on escapes such as \U
            self._problems.fatal(self._file, 0, 0, "", f"is not YAML: {error}")

    def _document(self, events: Iterator[ev.Event]) -> ev.Event:
        """Read up to the top-level mapping's start."""
        for event in events:
            if isinstance(event, ev.MappingStartEvent):
                return event
            if isinstance(event, (ev.StreamEndEvent, ev.NodeEvent)):
                empty = isinstance(event, ev.StreamEndEvent) or not getattr(event, "value", "-")
                what = "is empty" if empty else f"{_kind(event)} is at the top level"
                self._fatal(event, (), f"{what}; expected a mapping of keys")
        raise AssertionError("a YAML stream ends with an event")

    def _node(self, event: ev.Event, events: Iterator[ev.Event], path: Path) -> Node:
        if type(event) is ev.ScalarEvent:
            if event.anchor is not None or event.tag is not None:
                self._check_plain_data(event, path)
            text = event.value
            value = scalar(text) if event.implicit[0] else text
            if self._doubt is not None and event.implicit[0]:
                self._look(event, path, self._doubt)
            mark = event.start_mark
            assert mark is not None
            return Node(value, text, mark.line + 1, mark.column + 1)
        self._check_plain_data(event, path)
        if len(path) > MAX_NESTING:
            self._too_deep(event, path)
        if isinstance(event, ev.SequenceStartEvent):
            items: list[Node] = []
            for item in events:
                if isinstance(item, ev.SequenceEndEvent):
                    break
                items.append(self._node(item, events, (*path, len(items))))
                self._count(item, path)
            return _node_at(event, items, None)
        node = _node_at(event, {}, None)
        if isinstance(event, ev.AliasEvent):
            return node
        assert isinstance(node.value, dict)
        for item in events:
            if isinstance(item, ev.MappingEndEvent):
                break
            key = self._key(item, node, path)
            self._count(item, path)
            value_node = self._node(next(events), events, (*path, key or "?"))
            if key is not None:
                node.keys.setdefault(key, _position(item))
                node.value.setdefault(key, value_node)
        return node

    def _key(self, event: ev.Event, mapping: Node, path: Path) -> str | None:
        """A key's text. None, and a problem, for anything but a new plain text."""
        if not isinstance(event, ev.ScalarEvent):
            self._fatal(event, path, f"{_kind(event)} is a key here; keys are plain texts")
        self._check_plain_data(event, path)
        key = event.value
        bad = unreadable(key)
        if bad is not None:  # by an escape: the file itself has been looked through
            self._problem(event, path, f"a key has character {bad}, which is not allowed")
            return None
        if key in mapping.keys:
            line, _ = mapping.keys[key]
            self._problem(event, (*path, key), f"key {quote(key)} is already there, in line {line}")
            return None
        return key

    def _check_plain_data(self, event: ev.Event, path: Path) -> None:
        """Refuse what YAML can do beyond data: build objects, and expand a line to gigabytes."""
        anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
        if isinstance(event, ev.AliasEvent):
            sign, what = "*", f"alias *{anchor}"
        elif tag is not None:
            sign, what = "!", f"tag {tag.replace('tag:yaml.org,2002:', '!!')}"
        elif anchor is not None:
            sign, what = "&", f"anchor &{anchor}"
        else:
            return
        self._foreign = True
        message = (
            f"{quote(what)} found; manifests have no tags, anchors and aliases (what all prompts "
            f"share goes under defaults; a text that starts with {sign} needs quotes)"
        )
        self._problem(event, path, message)

    def _look(self, event: ev.ScalarEvent, path: Path, doubt: Doubt) -> None:
        """Tell of a plain scalar in several lines, one of which begins as an item of a list does,
        and of one that a comment follows.
        """
        start, mark = event.start_mark, event.end_mark
        assert start is not None
        assert mark is not None
        if start.line != mark.line and " - " in event.value:
            doubt("joined", path, start.line + 1, start.column + 1, event.value)
        if self._comment is None:
            return
        end = mark.line, mark.column
        while self._comment is not None and self._comment.after < end:
            self._comment = next(self._comments, None)
        if self._comment is not None and self._comment.after == end:
            doubt("comment", path, mark.line + 1, self._comment.column, self._comment.text)

    def _skip(self, event: ev.Event, events: Iterator[ev.Event]) -> Node:
        """Read past a value; its node tells of what kind it is."""
        if isinstance(event, ev.ScalarEvent):
            value = scalar(event.value) if event.implicit[0] else event.value
            return _node_at(event, value, event.value)
        if isinstance(event, ev.AliasEvent):
            return _node_at(event, None, None)
        depth = 1
        node = _node_at(event, [] if isinstance(event, ev.SequenceStartEvent) else {}, None)
        while depth:
            event = next(events)
            if type(event) is ev.ScalarEvent:
                continue
            if isinstance(event, ev.CollectionStartEvent):
                depth += 1
                if depth > MAX_NESTING:
                    self._too_deep(event, ())
            elif isinstance(event, ev.CollectionEndEvent):
                depth -= 1
        return node

    def _count(self, event: ev.Event, path: Path) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            self._fatal(
                event,
                path,
                f"more than {MAX_VALUES:,} values are in one place here; seeds can be given as "
                "{start: 0, count: 1000000}, prompts in a file",
            )

    def _too_deep(self, event: ev.Event, path: Path) -> NoReturn:
        self._fatal(event, path, f"more than {MAX_NESTING} collections are nested here")

    def _fatal(self, event: ev.Event, path: Path, message: str) -> NoReturn:
        line, column = _position(event)
        self._problems.fatal(self._file, line, column, join_path("", path), message)

    def _problem(self, event: ev.Event, path: Path, message: str) -> None:
        line, column = _position(event)
        self._problems.add(self._file, line, column, join_path("", path), message)

    def _syntax_error(self, error: yaml.YAMLError) -> NoReturn:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        parts = (getattr(error, "context", None), getattr(error, "problem", None))
        what = ": ".join(part for part in parts if part) or str(error).splitlines()[0]
        hint = next((hint for sign, hint in _HINTS.items() if sign in what), None)
        message = f"is not YAML: {what}" + (f" ({hint})" if hint else "")
        self._problems.fatal(self._file, line, column, "", message)


def _position(event: ev.Event) -> tuple[int, int]:
    mark = event.start_mark
    assert mark is not None
    return mark.line + 1, mark.column + 1


def _node_at(event: ev.Event, value: Any, text: str | None) -> Node:
    return Node(value, text, *_position(event))


def _kind(event: ev.Event) -> str:
    if isinstance(event, ev.SequenceStartEvent):
        return "a list"
    if isinstance(event, ev.MappingStartEvent):
        return "a mapping"
    return "an alias" if isinstance(event, ev.AliasEvent) else "a text"


class NodePlace:
    """A value in a YAML file."""

    def __init__(self, file: str, path: str, node: Node) -> None:
        self.file = file
        self.path = path
        self._node = node

    def position(self, path: Path, *, of_key: bool = False) -> tuple[int, int]:
        node = self._node
        for step, part in enumerate(path):
            value = node.value
            if isinstance(value, dict) and isinstance(part, str) and part in value:
                if of_key and step == len(path) - 1:
                    return node.keys[part]
                node = value[part]
            elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                node = value[part]
            else:
                break
        return node.line, node.column


def plain(
    node: Node, text_keys: Collection[str] = (), mappings: Collection[str] = (), *, key: str = ""
) -> Any:
    """A node as plain data.

    text_keys: keys of texts; a number or boolean under one is the text that it is written as.
    mappings: keys of mappings of such texts. key: the one that the node stands under.
    """
    value = node.value
    if isinstance(value, dict):
        texts = value.keys() if key in mappings else text_keys
        return {name: plain(item, texts, mappings, key=name) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item, text_keys, mappings, key=key) for item in value]
    if key in text_keys and value is not None:
        return node.text
    return value
