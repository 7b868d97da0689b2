"""Images that were deleted from a job's folder come back, byte by byte."""

from __future__ import annotations

import contextlib

from jobs.client.enter import submit
from jobs.client.resume import resume
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.records import read_records
from jobs.ledger.types import JobState
from jobs.manifest.load import load_manifest
from tests.jobs.client.test_enter import Messages
from tests.worker.serve.services import MANIFEST, Service

PROMPTS = "{prompt: a red circle, seeds: {start: 0, count: 6}}"


def quiet(text):
    return contextlib.nullcontext()


def render_all(service, queue):
    while queue.sent:
        _, shard = queue.sent.pop(0)
        service.worker.handle(shard)


def images(service, job):
    keys = JobKeys(job)
    return {
        info.key: service.store.get(info.key) for info in service.store.list(keys.images_prefix)
    }


def test_resume_renders_what_was_deleted(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(MANIFEST.format(prompts=PROMPTS))
    with Service(tmp_path) as service:
        queue, ledger, store = Messages(), service.ledger, service.store
        at = {"address": "out", "status": quiet}
        job = submit(load_manifest(path), store, ledger, queue, **at).job
        render_all(service, queue)
        before = images(service, job)
        assert len(before) == 6
        assert ledger.set_state(job, JobState.DONE) is JobState.DONE
        for key in list(before)[1:3]:
            store.delete(key)
        resumed = resume(job, store, ledger, queue, **at)
        assert (resumed.done, resumed.gone) == (4, 2)
        render_all(service, queue)
        assert images(service, job) == before
        assert ledger.settled_jobs() == [job]
        assert [r["index"] for r in read_records(JobFolder(store, JobKeys(job)))] == list(range(6))


def test_resume_with_a_check_renders_what_was_damaged(tmp_path):
    """Also where neither size nor file system say so."""
    path = tmp_path / "small.yaml"
    path.write_text(MANIFEST.format(prompts=PROMPTS))
    with Service(tmp_path) as service:
        queue, ledger, store = Messages(), service.ledger, service.store
        at = {"address": "out", "status": quiet}
        job = submit(load_manifest(path), store, ledger, queue, **at).job
        render_all(service, queue)
        before = images(service, job)
        assert ledger.set_state(job, JobState.DONE) is JobState.DONE
        key, *_ = before
        flipped = bytearray(before[key])
        flipped[-40] ^= 1
        store.put(key, bytes(flipped), overwrite=True)
        assert resume(job, store, ledger, queue, **at).gone == 0
        assert resume(job, store, ledger, queue, check=True, **at).gone == 1
        render_all(service, queue)
        assert images(service, job) == before
