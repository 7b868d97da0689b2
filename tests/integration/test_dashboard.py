"""The live page in a real browser, over a real Valkey, SeaweedFS and worker."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

import pytest
import yaml

from jobs.dashboard.access import Access
from jobs.dashboard.server import Place, serving
from jobs.errors import ExitCode, StoreError
from jobs.folder.records import dump_lines
from jobs.ledger import open_ledger
from jobs.ledger.memory.ledger import MemoryLedger
from jobs.ledger.types import BY_BUDGET, JobState
from jobs.storage import LocalStore, open_store
from tests.integration.cluster import Cluster, make_model
from tests.jobs.dashboard.world import picture
from tests.jobs.report.browser import Browser
from tests.ledgers import failure, new_job, take
from tests.servers import PATIENCE_S, Valkey, wait_for

HOSTILE = [
    '<img src=x onerror="window.hostile = 1">',
    "</script><script>window.hostile = 1</script>",
    "<svg/onload=window.hostile=1>",
    "javascript:window.hostile=1",
    "\" onmouseover='window.hostile=1' style='background:red' x=\"",
    "{{constructor.constructor('window.hostile=1')()}}",
]

NOTE_VIOLATIONS = """\
window.violations = [];
addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"""


class Page(Browser):
    """A browser that notes what the page's policy kept from happening."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._call("Page.addScriptToEvaluateOnNewDocument", source=NOTE_VIOLATIONS)
        self.open(address)

    def wait_for(self, condition: str) -> None:
        wait_for(lambda: self.run(f"Boolean({condition})"), condition)

    def wait_for_text(self, selector: str, text: str) -> None:
        self.wait_for(
            f"document.querySelector({json.dumps(selector)})?.textContent === {json.dumps(text)}"
        )

    def wait_until_live(self) -> None:
        self.wait_for("document.getElementById('live').dataset.state === 'live'")

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)}).textContent")

    def texts(self, selector: str) -> list[str]:
        script = f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)"
        return self.run(script)

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def shown(self, selector: str) -> bool:
        return self.run(f"document.querySelector({json.dumps(selector)}).checkVisibility()")


@pytest.fixture
def cluster(tmp_path: Path, valkey: Valkey, s3_address: str) -> Iterator[Cluster]:
    with valkey.client() as client:
        client.flushall()
    store = open_store(s3_address)
    cluster = Cluster(tmp_path, valkey, make_model(tmp_path), store=store, address=s3_address)
    yield cluster
    cluster.close()


@pytest.fixture
def address(cluster: Cluster) -> Iterator[str]:
    """Address that the command prints; it is ended with Ctrl-C, quietly."""
    command = [sys.executable, "-m", "jobs.cli", "dashboard", "--json", "--port", "0"]
    process = subprocess.Popen(
        command, env=cluster.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["address"]
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, said) == (ExitCode.DONE, "")


def write_manifest(folder: Path, name: str, prompts: list[str]) -> Path:
    path = folder / f"{name}.yaml"
    defaults = {"width": 64, "height": 64, "steps": 2}
    manifest = {"version": 1, "name": name, "model": "odd", "defaults": defaults}
    path.write_text(yaml.safe_dump({**manifest, "prompts": prompts}))
    return path


def test_pictures_land_no_prompt_runs_and_only_the_token_changes(cluster, address, tmp_path):
    cluster.start_worker()
    base, _, token = address.partition("/#token=")
    with Page(address) as page, Page(base) as reader:
        page.wait_until_live()
        cluster.submit(write_manifest(tmp_path, "hostile", HOSTILE))
        page.wait_for(f"document.querySelectorAll('#newest .tile').length === {len(HOSTILE)}")
        page.wait_for("[...document.querySelectorAll('#newest img')].every(i => i.naturalWidth)")
        assert sorted(page.texts("#newest .line")) == sorted(HOSTILE)
        assert not page.shown("#no-pictures")
        page.wait_for_text("#jobs .chip", "done")
        page.wait_for_text("#workers .chip", "idle")
        (job,) = cluster.ledger.jobs()
        assert page.texts("#jobs .name") == [job.job_id]

        page.click("#newest .tile")
        assert page.text("#prompt") in HOSTILE
        page.press("Escape")
        page.click("#jobs .row")
        page.wait_for(f"document.querySelectorAll('#gallery .tile').length === {len(HOSTILE)}")
        assert page.run("location.pathname") == f"/jobs/{quote(job.job_id)}"
        assert page.run("location.hash") == ""
        assert token not in page.run("document.documentElement.outerHTML + location.href")

        # Only the token lets a page change anything.
        other = "of-another-model"
        cluster.ledger.create(new_job(other))
        reader.open(f"{base}/jobs/{other}")
        reader.wait_for_text("#summary", other)
        assert not any(reader.shown(f"[data-change={name}]") for name in ("pause", "cancel"))
        refused = f"fetch('/api/jobs/{other}/cancel', {{method: 'POST'}}).then(a => a.status)"
        assert reader.run(refused) == 403
        assert cluster.ledger.status(other).state is not JobState.CANCELLED

        for one in (page, reader):
            assert one.run("window.hostile") is None
            assert one.run("violations") == []
        assert page.messages == []


def test_a_job_is_steered_from_its_page(cluster, address, tmp_path):
    """No worker is there, so that it stays as it is."""
    cluster.submit(write_manifest(tmp_path, "steered", ["a", "b"]))
    (job_id,) = cluster.ledger.job_ids(1)
    base, _, token = address.partition("/#")
    with Page(f"{base}/jobs/{job_id}#{token}") as page:
        for name, state in (("pause", JobState.PAUSED), ("unpause", JobState.ACTIVE)):
            page.wait_for(f"document.querySelector('[data-change={name}]').checkVisibility()")
            page.click(f"[data-change={name}]")
            page.wait_for_text("#job-row .chip", state)
            assert cluster.ledger.status(job_id).state is state
        cluster.ledger.set_state(job_id, JobState.PAUSED, reason=BY_BUDGET)
        page.wait_for_text("#job-row .chip", "paused: budget")
        cluster.ledger.set_state(job_id, JobState.ACTIVE)
        page.wait_for_text("#job-row .chip", "active")
        page.click("[data-change=cancel]")
        assert cluster.ledger.status(job_id).state is JobState.ACTIVE  # it asks first
        page.click("#confirm-yes")
        page.wait_for_text("#job-row .chip", "cancelled")
        assert cluster.ledger.status(job_id).state is JobState.CANCELLED
        cluster.ledger.forget(job_id)
        cluster.ledger.create(new_job("another"))
        page.click("#back")
        page.wait_for_text("#jobs .name", "another")


def test_a_store_that_is_away_is_said_and_the_rest_goes_on():
    ledger, why = MemoryLedger(), "s3://bucket: nobody answers <b>there</b>"

    def away(address: str) -> NoReturn:
        raise StoreError(why)

    ledger.create(new_job())
    with serving(Place("127.0.0.1", 0), ledger, away) as running, Page(running.address) as page:
        page.wait_until_live()
        lease = take(ledger, 0)
        ledger.settle(lease, [0], [failure(1, "no memory")])
        page.wait_for_text("#no-pictures", f"Pictures cannot be read: {why}")
        page.wait_for_text("#jobs .counts", "1 of 10, 1 failed")
        page.wait_for_text("#failures .reason", "no memory")
        page.click("#jobs .row")
        page.wait_for_text("#gallery-error", f"Pictures cannot be read: {why}")
        page.wait_for_text("#job-failures .reason", "no memory")
        page.click("#back")
        page.wait_for_text("#failures .reason", "no memory")
        ledger.forget("job")
        page.wait_for("!document.querySelector('#jobs li, #newest li, #failures li')")


def test_where_others_can_ask_only_the_token_lets_read(tmp_path, monkeypatch):
    """The server listens on loopback here, and takes it for an address that others reach."""
    monkeypatch.setattr(Access, "on_loopback", False)
    ledger, store = MemoryLedger(), LocalStore(tmp_path)
    ledger.create(new_job(store=str(tmp_path)))
    record = {"index": 2, "path": "images/2.png", "prompt": "a ring", "seed": 7}
    store.put("job/records/000000.jsonl", dump_lines([record]))
    store.put("job/images/2.png", picture())
    with serving(Place("127.0.0.1", 0), ledger, open_store) as running:
        with Page(running.address) as page:
            page.wait_until_live()
            ledger.settle(take(ledger, 0), [2])
            page.wait_for("document.querySelector('#newest img')?.naturalWidth")
        with Page(running.address.partition("#")[0]) as page:
            page.wait_for("document.querySelector('#alert').textContent.includes('the token')")
            assert page.texts("#jobs .name") == page.texts("#newest .tile") == []


def test_a_ledger_that_dies_is_shown_and_comes_back(tmp_path):
    server = Valkey(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    try:
        ledger = open_ledger(server.url)
        ledger.create(new_job())
        with (
            serving(Place("127.0.0.1", 0), open_ledger(server.url), open_store) as running,
            Page(running.address) as page,
        ):
            page.wait_until_live()
            page.wait_for("document.querySelector('#jobs .name')")
            server.kill()
            page.wait_for("document.getElementById('live').dataset.state === 'away'")
            assert "The ledger does not answer" in page.text("#alert")
            assert page.texts("#jobs .name") == ["job"]  # as it was before
            server.start()
            page.wait_until_live()
            assert not page.shown("#alert")
            ledger.settle(take(ledger, 0), [0])
            page.wait_for_text("#jobs .counts", "1 of 10")
    finally:
        server.kill()
