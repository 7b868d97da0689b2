"""A manifest that changed a little says which earlier job it is not, and what differs."""

from __future__ import annotations

import os

import pytest

from jobs.cli.root import main
from jobs.client import earlier_jobs
from jobs.client.earlier_jobs import earlier_job_lines
from jobs.errors import ExitCode, StoreError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.prepare import prepare
from jobs.manifest.load import load_manifest
from jobs.storage import LocalStore, open_store
from tests.jobs.manifests import picture, write

TEXT = """\
version: 1
name: shapes
defaults: {width: 64, height: 64, steps: 50}
prompts:
  - prompt: a red circle
    seeds: [1, 2, 3]
  - a green star
"""


class Place:
    """A folder of manifests and a store."""

    def __init__(self, folder, store):
        self.folder = folder
        self.store = store

    def read(self, text):
        return load_manifest(write(self.folder, text))

    def submit(self, text, *, at_s=None):
        """What a run or a submission leaves at once; the job's folder."""
        manifest = self.read(text)
        keys = JobKeys(manifest.job_id())
        prepare(manifest, JobFolder(self.store, keys))
        if at_s is not None:
            os.utime(self.store.root / keys.job, (at_s, at_s))
        return keys.job_id

    def said(self, text):
        manifest = self.read(text)
        return earlier_job_lines(self.store, manifest, manifest.job_id(), manifest.tasks())


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path, LocalStore(tmp_path / "out"))


def test_nothing_is_said_of_a_first_job(place):
    assert place.said(TEXT) == []
    place.submit(TEXT.replace("name: shapes", "name: shapes-of-mine"))
    assert place.said(TEXT) == []


def test_nothing_is_said_of_the_same_job(place):
    place.submit(TEXT)
    place.submit(TEXT.replace("[1, 2, 3]", "[1, 2, 4]"))
    assert place.said(TEXT + "# a remark\n") == []


@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [
        ("[1, 2, 3]", "[1, 2, 4]", "seed of 1 image: 3, now 4"),
        ("[1, 2, 3]", "[1, 4, 5]", "seed of 2 images"),
        ("steps: 50", "steps: 30", "steps: 50, now 30"),
        ("a green star", "a blue star", "prompt of 1 image: 'a green star', now 'a blue star'"),
        ("[1, 2, 3]", "[1, 2, 3, 4]", "4 images, now 5; 1 image is new"),
        ("[1, 2, 3]", "[9]", "4 images, now 2; 1 image is new; 3 images are gone"),
        ("[1, 2, 3]", "[3, 2, 1]", "names or order of images"),
        (
            "name: shapes",
            "name: shapes\nmodel: odd",
            "model: 'demo', now 'odd'; guidance: 2.0, now",
        ),
        (
            "name: shapes",
            "name: shapes\noutput: {format: jpeg, quality: 80}",
            "quality: 95, now 80; format: 'png', now 'jpeg'",
        ),
        ("name: shapes", 'name: shapes\noutput: {name: "{seed}-{index}"}', "names or order of"),
        (
            "steps: 50}",
            "steps: 30, guidance: 3, negative: grey, sampler: ddim, eta: 0.5}",
            "negative: an empty text, now 'grey'; sampler: 'plms', now 'ddim'; steps: 50, now 30; "
            "guidance: 2.0, now 3.0; and 1 more",
        ),
    ],
)
def test_what_differs(place, old, new, differs):
    job = place.submit(TEXT)
    first, second = place.said(TEXT.replace(old, new))
    assert first == f"a new job: it differs from {place.store.root}/{job}"
    assert second.startswith(f"  {differs}")


def test_another_picture(place):
    text = TEXT + "  - {prompt: a ring, init_image: a.png}\n"
    picture(place.folder / "a.png")
    place.submit(text)
    picture(place.folder / "a.png", (72, 64))
    assert place.said(text)[1] == "  init_image of 1 image"


def test_other_loras_and_embeddings(place):
    digests = "loras: {{ink: {{sha256: {0}}}}}\nembeddings: {{pen: {{sha256: {0}}}}}\n"
    text = TEXT + "  - {prompt: a pen, loras: [ink], embeddings: [pen]}\n"
    place.submit(text + digests.format("ab" * 32))
    said = place.said(text + digests.format("cd" * 32))
    assert said[1].strip() == "loras of 1 image; embeddings of 1 image"


def test_the_latest_of_several_is_the_one_that_is_compared(place):
    written = {5: 3000, 1: 1000, 2: 2000}
    jobs = {
        seed: place.submit(TEXT.replace("[1, 2, 3]", f"[{seed}]"), at_s=at_s)
        for seed, at_s in written.items()
    }
    said = place.said(TEXT.replace("[1, 2, 3]", "[7]"))
    assert said == [
        f"a new job: it differs from {place.store.root}/{jobs[5]} (and 2 others of this name)",
        "  seed of 1 image: 5, now 7",
    ]


def test_of_a_large_job_the_beginning_is_compared(place, monkeypatch):
    monkeypatch.setattr(earlier_jobs, "PART_SIZE", 3)
    place.submit(TEXT)
    assert place.said(TEXT.replace("[1, 2, 3]", "[1, 2, 4]"))[1] == (
        "  seed of 1 image of the first 3: 3, now 4"
    )
    assert len(place.said(TEXT.replace("a green star", "a blue star"))) == 1


def test_few_folders_are_looked_into(place, monkeypatch):
    jobs = [place.submit(TEXT.replace("[1, 2, 3]", f"[{n}]")) for n in range(5)]
    monkeypatch.setattr(earlier_jobs, "MOST_LOOKED_AT", 2)
    heads = []
    head = place.store.head
    monkeypatch.setattr(place.store, "head", lambda key: heads.append(key) or head(key))
    assert "(and 4 others of this name)" in place.said(TEXT)[0]
    assert len(heads) == 1 + 2
    assert {key.partition("/")[0] for key in heads[1:]} == set(sorted(jobs)[:2])


@pytest.mark.parametrize("harm", ["job file", "plan", "store"])
def test_what_cannot_be_read_is_no_trouble(place, monkeypatch, harm):
    keys = JobKeys(place.submit(TEXT))
    if harm == "store":

        def away(*_):
            raise StoreError("away")

        monkeypatch.setattr(place.store, "folders", away)
    else:
        key = keys.job if harm == "job file" else keys.plan_part(0)
        place.store.put(key, b"damaged", overwrite=True)
    assert place.said(TEXT.replace("[1, 2, 3]", "[1]")) == []


def test_in_a_bucket(tmp_path, s3_address):
    place = Place(tmp_path, open_store(s3_address))
    job = place.submit(TEXT)
    assert place.said(TEXT.replace("[1, 2, 3]", "[1, 2, 4]")) == [
        f"a new job: it differs from {s3_address}/{job}",
        "  seed of 1 image: 3, now 4",
    ]


class TestCommands:
    """The commands say it on stderr, and only once."""

    @pytest.fixture
    def manifest(self, place, monkeypatch):
        monkeypatch.chdir(place.folder)
        self.job = place.submit(TEXT)
        return write(place.folder, TEXT.replace("[1, 2, 3]", "[1, 2, 4]"))

    def test_plan(self, manifest, capsys, place):
        for _ in range(2):  # it makes no folder, so that it is said again
            assert main(["plan", str(manifest)]) == ExitCode.DONE
            said = capsys.readouterr()
            assert f"it differs from {place.store.root}/{self.job}\n  seed of 1 image" in said.err
            assert "it differs" not in said.out

    def test_run(self, manifest, capsys):
        command = ["run", str(manifest), "--model", "nowhere.ckpt"]
        assert main(command) == ExitCode.MODEL
        assert self.job in capsys.readouterr().err
        assert main([*command, "--job", "mine"]) == ExitCode.MODEL
        assert self.job not in capsys.readouterr().err

    def test_submit(self, manifest, capsys, valkey):
        with valkey.client() as client:
            client.flushall()
        command = ["submit", str(manifest), "--store", "out", "--redis", valkey.url]
        assert main([*command, "--json"]) == ExitCode.DONE
        assert capsys.readouterr().err == ""
        manifest.write_text(TEXT.replace("[1, 2, 3]", "[1, 2, 5]"))
        assert main(command) == ExitCode.DONE
        assert "it differs from" in capsys.readouterr().err
        assert main(command) == ExitCode.DONE
        assert "it differs from" not in capsys.readouterr().err
