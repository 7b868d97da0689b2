"""Lines of `records/` that were lost come back from the images themselves."""

from __future__ import annotations

import pytest

from jobs.errors import StoreError
from jobs.records import dump_lines, read_records
from jobs.storage import JobKeys
from tests.worker.services import Service
from worker.mend import mend_records

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
    return list(read_records(service.store, KEYS))


def without_timings(records: list[dict]) -> list[dict]:
    left_out = ("timings_s", "finished")
    return [{k: v for k, v in record.items() if k not in left_out} for record in records]


def mend(service: Service, failed=()) -> int:
    return mend_records(service.store, KEYS, images=IMAGES, failed=failed)


def test_whole_records_are_left_alone(service):
    before = lines(service)
    assert len(before) == IMAGES
    assert mend(service) == 0
    assert lines(service) == before


def test_what_another_writer_dropped_is_read_off_the_images(service):
    before = lines(service)
    write(service, 0, before[2:3])
    service.store.delete(KEYS.records(1))
    assert mend(service) == IMAGES - 1
    after = lines(service)
    assert without_timings(after) == without_timings(before)
    assert after[2] == before[2]  # with its timings: it was never lost
    assert mend(service) == 0


def test_images_that_failed_have_no_record_to_mend(service):
    kept = [record for record in lines(service) if record["index"] != 4]
    write(service, 1, kept[4:])
    assert mend(service, failed={4}) == 0
    assert lines(service) == kept


def test_an_image_that_is_gone_is_named(service):
    (lost,) = (record for record in lines(service) if record["index"] == 3)
    service.store.delete(KEYS.records(0))
    service.store.delete(KEYS(lost["path"]))
    with pytest.raises(StoreError, match=f"{lost['path']} is gone .* sdbatch resume job"):
        mend(service)
