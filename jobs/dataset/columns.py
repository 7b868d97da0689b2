"""Records as flat columns, for tables.

A field inside another is a column of both names, `model_name` and `meta_sku`; a list is its JSON.
Columns and their types are found by looking, so each table has what its records have.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jobs.errors import InputError
from jobs.folder.records import Record

if TYPE_CHECKING:
    import pyarrow as pa

MOST_COLUMNS = 500
"""Records have about fifty fields and at most 32 labels; more is something else."""

_TIME = "finished"  # the field that is a time of day

_MOST_SIGNED, _MOST_UNSIGNED = 2**63 - 1, 2**64 - 1


def arrow() -> Any:
    """The pyarrow package. Raises `InputError` where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise InputError(
            "tables need pyarrow, which is not installed: pip install 'sdbatch[data]'"
        ) from None
    return pyarrow


def flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without anything inside of anything: texts, numbers, booleans and None."""
    return dict(_flat(record, ""))


def _flat(values: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        column = f"{before}{name}".replace("-", "_")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{column}_")
        elif isinstance(value, list):
            yield column, json.dumps(value, separators=(",", ":"))
        elif column == _TIME and isinstance(value, str):
            yield column, _time(value)
        else:
            yield column, value


def _time(text: str) -> datetime.datetime | None:
    """A time of day in UTC; None for what is none."""
    try:
        return datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    except ValueError:
        return None


class Columns:
    """Columns of a table, by what was seen so far, in that order."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._kinds: dict[str, set[str]] = {}
        for record in records:
            self.see(record)

    def see(self, record: Record) -> None:
        """Take a record's fields in. Raises `InputError` if they are too many."""
        for name, value in flat(record).items():
            self._kinds.setdefault(name, set()).add(_kind(value))
        if len(self._kinds) > MOST_COLUMNS:
            raise InputError(f"the records have more than {MOST_COLUMNS} fields in all")

    def schema(self) -> pa.Schema:
        """Raises `InputError` without pyarrow."""
        pa = arrow()
        types = {
            "time": pa.timestamp("s", tz="UTC"),
            "bool": pa.bool_(),
            "int": pa.int64(),
            "large": pa.uint64(),
            "float": pa.float64(),
            "text": pa.string(),
        }
        return pa.schema([(name, types[_of_all(kinds)]) for name, kinds in self._kinds.items()])


def rows(records: Iterable[Record], schema: pa.Schema) -> pa.Table:
    """A table of the schema's columns; what a record has besides is left out."""
    texts = {field.name for field in schema if field.type == "string"}
    values = [
        {name: _as_text(value) if name in texts else value for name, value in flat(record).items()}
        for record in records
    ]
    return arrow().Table.from_pylist(values, schema=schema)


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)


def _kind(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return _kind_of_int(value)
    if isinstance(value, float):
        return "float"
    return "time" if isinstance(value, datetime.datetime) else "text"


def _kind_of_int(value: int) -> str:
    if -_MOST_SIGNED <= value < 0:
        return "negative"
    if value <= _MOST_SIGNED:
        return "int" if value >= 0 else "text"
    return "large" if value <= _MOST_UNSIGNED else "text"


def _of_all(kinds: set[str]) -> str:
    """The kind that holds all of these."""
    some = kinds - {"none"}
    if some and some <= {"int", "negative"}:
        return "int"
    if some and some <= {"int", "negative", "float"}:
        return "float"
    if some and some <= {"int", "large"}:
        return "large"
    return some.pop() if len(some) == 1 else "text"
