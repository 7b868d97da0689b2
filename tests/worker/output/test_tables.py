"""Tables at a job's end: there, or a warning; never in the way of the end."""

from __future__ import annotations

from pathlib import Path

import pandas
import pytest

from jobs.errors import StoreError
from jobs.folder.job_file import JobFile, write_job_file
from jobs.storage import LocalStore
from tests.jobs.dataset.made import a_job
from worker.output import tables
from worker.output.tables import write_tables

JOB = JobFile("job", "demo", "1" * 64, images=5, quality=95)


def test_the_table_of_the_records(tmp_path: Path):
    folder = a_job(LocalStore(tmp_path), 5)
    write_tables(folder, images=5)
    assert list(pandas.read_parquet(tmp_path / "job" / "records.parquet")["index"]) == list(
        range(5)
    )
    assert not (tmp_path / "job" / "webdataset").exists()


def test_a_table_that_cannot_be_written_is_a_warning(tmp_path: Path, monkeypatch, caplog):
    folder = a_job(LocalStore(tmp_path), 5)

    def fail(*arguments: object) -> None:
        raise OverflowError("of some value")

    monkeypatch.setattr(tables, "write_job_table", fail)
    write_tables(folder, images=5)
    assert "there is no records.parquet: of some value" in caplog.text


def test_a_data_set_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch):
    """Somebody asked for it, and the end is tried again."""
    folder = a_job(LocalStore(tmp_path), 5)
    write_job_file(folder, JobFile(**{**vars(JOB), "dataset": "webdataset"}))
    put_file = folder.store.put_file

    def refuse(key: str, path: Path) -> None:
        if "webdataset" in key:
            raise StoreError("403: no rights")
        put_file(key, path)

    monkeypatch.setattr(folder.store, "put_file", refuse)
    with pytest.raises(StoreError, match="no rights"):
        write_tables(folder, images=5)
    monkeypatch.undo()
    write_tables(folder, images=5)
    assert (tmp_path / "job" / "webdataset" / "00000.tar").exists()
