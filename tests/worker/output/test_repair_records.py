"""Lines of `records/` that were lost come back from the images themselves."""

from __future__ import annotations

import pytest

from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.records import dump_lines, read_records
from tests.worker.serve.services import Service
from worker.output.repair_records import BrokenImagesError, repair_records

KEYS = JobKeys("job")
IMAGES = 6


@pytest.fixture
def service(tmp_path):
    with Service(tmp_path) as service:
        service.enter(images=IMAGES)
        for number in range(3):
            service.handle(number=number)
        # The service's shards are smaller than those that the plan says.
        records = lines(service)
        service.store.delete(KEYS.records(2))
        write(service, 0, records[:4])
        write(service, 1, records[4:])
        yield service


def write(service: Service, shard: int, records: list[dict]) -> None:
    service.store.put(KEYS.records(shard), dump_lines(records), overwrite=True)


def lines(service: Service) -> list[dict]:
    return list(read_records(JobFolder(service.store, KEYS)))


def without_timings(records: list[dict]) -> list[dict]:
    left_out = ("timings_s", "finished")
    return [{k: v for k, v in record.items() if k not in left_out} for record in records]


def mend(service: Service, failed: frozenset[int] = frozenset()) -> None:
    assert repair_records(JobFolder(service.store, KEYS), images=IMAGES, failed=failed) == 2


def test_whole_records_are_left_alone(service):
    before = lines(service)
    assert len(before) == IMAGES
    mend(service)
    assert lines(service) == before


def test_what_another_writer_dropped_is_read_off_the_images(service):
    before = lines(service)
    write(service, 0, before[2:3])
    service.store.delete(KEYS.records(1))
    mend(service)
    after = lines(service)
    assert without_timings(after) == without_timings(before)
    assert after[2] == before[2]  # with its timings: it was never lost


def test_a_list_that_lags_behind_costs_no_timings(service, monkeypatch):
    before = lines(service)
    listed = service.store.list
    monkeypatch.setattr(
        service.store,
        "list",
        lambda prefix: (i for i in listed(prefix) if "/records/" not in i.key),
    )
    mend(service)
    monkeypatch.undo()
    assert lines(service) == before


@pytest.mark.parametrize("damage", [b"{half", b"\xff", b"[1]", b'{"index": 1}', b"[" * 10_000])
def test_damaged_lines_come_anew(service, damage):
    before = lines(service)
    key = KEYS.records(0)
    _, _, rest = service.store.get(key).partition(b"\n")
    service.store.put(key, damage + b"\n" + rest, overwrite=True)
    mend(service)
    after = lines(service)
    assert after[1:] == before[1:]
    assert without_timings(after) == without_timings(before)


def test_records_cut_in_the_middle_come_anew(service):
    before = lines(service)
    data = service.store.get(KEYS.records(0))
    service.store.put(KEYS.records(0), data[: len(data) // 2], overwrite=True)
    mend(service)
    assert without_timings(lines(service)) == without_timings(before)


def test_images_that_failed_have_no_record_to_mend(service):
    kept = [record for record in lines(service) if record["index"] != 4]
    write(service, 1, kept[4:])
    mend(service, failed=frozenset({4}))
    assert lines(service) == kept


@pytest.mark.parametrize("data", [None, b"", b"no picture"])
def test_an_image_that_is_gone_or_damaged_is_named(service, data):
    (lost,) = (record for record in lines(service) if record["index"] == 3)
    service.store.delete(KEYS.records(0))
    service.store.delete(KEYS(lost["path"]))
    if data is not None:
        service.store.put(KEYS(lost["path"]), data)
    with pytest.raises(BrokenImagesError, match=f"1 image is gone .*{lost['path']}") as caught:
        mend(service)
    assert caught.value.indices == [3]
    kept = [record for record in lines(service) if record["index"] != 3]
    assert len(kept) == IMAGES - 1  # the others have theirs again
