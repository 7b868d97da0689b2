"""Records as columns: nothing is lost, and types are those of the values."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.dataset import columns
from jobs.dataset.columns import MOST_COLUMNS, Columns, flat, rows
from jobs.dataset.table import write_job_table
from jobs.errors import InputError
from jobs.folder.layout import JobFolder
from jobs.storage import LocalStore
from tests.jobs.dataset.made import MANY, a_job, records


def types(*found: dict) -> dict[str, str]:
    return {field.name: str(field.type) for field in Columns(found).schema()}


def test_fields_inside_of_fields_are_columns():
    record = {"index": 1, "model": {"name": "demo"}, "meta": {"my-sku": "7"}, "loras": [{"a": 1}]}
    assert flat(record) == {
        "index": 1,
        "model_name": "demo",
        "meta_my_sku": "7",
        "loras": '[{"a":1}]',
    }


def test_types_are_those_of_all_values():
    assert types({"a": 1}, {"a": 2.5}) == {"a": "double"}
    assert types({"a": 1}, {"a": MANY}) == {"a": "uint64"}
    assert types({"a": -1}) == {"a": "int64"}
    assert types({"a": None}, {"a": True}) == {"a": "bool"}
    assert types({"a": None}) == {"a": "string"}
    assert types({"a": "x"}, {"a": 1}) == {"a": "string"}
    assert types({"finished": "2026-01-02T03:04:05+00:00"}) == {"finished": "timestamp[s, tz=UTC]"}


def test_values_of_a_mixed_column_are_text():
    found = [{"a": "x"}, {"a": 1}, {"a": None}, {}]
    table = rows(found, Columns(found).schema())
    assert table.column("a").to_pylist() == ["x", "1", None, None]


_SCALAR = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
_RECORD = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), _SCALAR | st.dictionaries(st.just("d"), _SCALAR)
)


@given(st.lists(_RECORD, max_size=5))
def test_whatever_records_hold_is_a_table(found: list[dict]):
    table = rows(found, Columns(found).schema())
    assert table.num_rows == (len(found) if table.num_columns else 0)


def test_more_fields_than_a_record_has_are_refused():
    with pytest.raises(InputError, match=f"more than {MOST_COLUMNS} fields"):
        Columns([{f"f{number}": 1 for number in range(MOST_COLUMNS + 1)}])


def test_the_table_of_a_job_has_its_records(tmp_path: Path):
    folder: JobFolder = a_job(LocalStore(tmp_path), 12)
    write_job_table(folder, lambda: iter(records(folder)))
    table = pyarrow.parquet.read_table(tmp_path / "job" / "records.parquet")
    found = table.to_pylist()
    for row, record in zip(found, records(folder), strict=True):
        assert {name: value for name, value in row.items() if value is not None} == flat(record)
    assert found[0]["finished"].tzinfo is not None
    assert isinstance(found[0]["finished"], datetime.datetime)
    assert found[3]["seed"] == MANY


def test_without_pyarrow_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'sdbatch\[data\]'"):
        columns.arrow()
