"""Collecting a job: everything, checked, and only what is missing."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from jobs.cli.root import main
from jobs.client.collect import collect, refuse_same
from jobs.client.stars import read_stars
from jobs.errors import ExitCode, InputError, NotFoundError, StoreError
from jobs.folder.check import remove_damaged
from jobs.folder.job_file import JobFile, write_job_file
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.records import dump_lines, read_records
from jobs.storage import LocalStore

KEYS = JobKeys("job")
MORE = {
    "bytes": 7,
    "seed": 0,
    "width": 64,
    "height": 64,
    "evaluations": 1,
    "model": {"name": "demo", "digest": "5a" * 32},
}
"""What a gallery needs beside what is collected by."""

COUNT = 100  # more than are copied at once


@pytest.fixture
def store(tmp_path):
    store = LocalStore(tmp_path / "store")
    for shard in range(2):
        records = []
        for index in range(shard * 50, shard * 50 + 50):
            data = b"image %d" % index
            path = f"images/{index:06d}.png"
            store.put(KEYS(path), data)
            digest = hashlib.sha256(data).hexdigest()
            prompt = "a Red ring" if index % 10 == 0 else "a star"
            records.append({"index": index, "path": path, "sha256": digest, "prompt": prompt})
        store.put(KEYS.records(shard), dump_lines(records))
    store.put(KEYS.manifest, b"version: 1")
    store.put(KEYS.index, b"<html>")
    store.put(KEYS.gallery_index(0), b"indexShard()")
    store.put(KEYS.gallery_details(0), b"detailShard()")
    store.put(KEYS.done, b"{}")
    store.put(KEYS.plan_part(0), b"plan")
    return store


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_everything_but_the_plan(store, tmp_path):
    seen = []
    collected = collect(JobFolder(store, KEYS), tmp_path / "mine", tick=seen.append)
    assert (collected.copied, collected.present, collected.damaged) == (COUNT, 0, [])
    assert sorted(seen) == list(range(1, COUNT + 1))
    mine = files(tmp_path / "mine" / "job")
    theirs = files(tmp_path / "store" / "job")
    assert mine == {path: data for path, data in theirs.items() if not path.startswith("plan/")}
    assert collected.bytes_copied == sum(
        len(data) for path, data in mine.items() if path.startswith("images/")
    )


def test_thumbnails_come_along_where_they_are_there(store, tmp_path):
    lines = list(read_records(JobFolder(store, KEYS)))
    for name, line in zip(("there", "gone", "kept"), lines, strict=False):
        line["thumbnail"] = f"thumbs/{name}.webp"
    store.put(KEYS.records(0), dump_lines(lines[:50]), overwrite=True)
    store.put(KEYS("thumbs/there.webp"), b"small")
    store.put(KEYS("thumbs/kept.webp"), b"small")
    LocalStore(tmp_path / "mine").put(KEYS("thumbs/kept.webp"), b"kept")
    assert collect(JobFolder(store, KEYS), tmp_path / "mine").damaged == []
    mine = files(tmp_path / "mine" / "job")
    thumbs = {path: data for path, data in mine.items() if path.startswith("thumbs/")}
    assert thumbs == {"thumbs/there.webp": b"small", "thumbs/kept.webp": b"kept"}


def test_into_a_bucket_is_refused(store, tmp_path, monkeypatch):
    """It would become a folder named `s3:`."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="a folder named s3: is an address"):
        collect(JobFolder(store, KEYS), Path("s3://bucket/pictures"))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_inputs_come_along_each_checked_by_its_name(store, tmp_path):
    names = {}
    for data in (b"picture", b"other", b"prompts"):
        names[data] = f"{hashlib.sha256(data).hexdigest()}.png"
        store.put(KEYS.input(names[data]), data)
    store.put(KEYS.resolved, b"version: 1")
    store.put(KEYS.input(names[b"other"]), b"damaged", overwrite=True)
    collected = collect(JobFolder(store, KEYS), tmp_path / "mine")
    assert collected.damaged == [f"inputs/{names[b'other']}"]
    mine = files(tmp_path / "mine" / "job")
    assert {path for path in mine if path.startswith("inputs/")} == {
        f"inputs/{names[b'picture']}",
        f"inputs/{names[b'prompts']}",
    }
    assert mine["manifest.resolved.yaml"] == b"version: 1"


def test_a_job_that_is_not_finished_gets_its_gallery_here(store, tmp_path):
    store.delete(KEYS.done)
    store.put(KEYS.index, b"of an hour ago", overwrite=True)
    lines = [record | MORE for record in read_records(JobFolder(store, KEYS))]
    store.put(KEYS.records(0), dump_lines(lines[:50]), overwrite=True)
    store.delete(KEYS.records(1))
    job = JobFile("job", "demo", "0f" * 32, images=COUNT, quality=95)
    write_job_file(JobFolder(store, KEYS), job)
    collect(JobFolder(store, KEYS), tmp_path / "mine")
    mine = files(tmp_path / "mine" / "job")
    assert b"is not finished: it has 50 of 100 pictures so far" in mine["index.html"]
    assert mine["grid-0000.jpg"].startswith(b"\xff\xd8")
    assert "done.json" not in mine
    # And the final one once it is.
    store.put(KEYS.index, b"final", overwrite=True)
    store.put(KEYS.done, b"{}")
    collect(JobFolder(store, KEYS), tmp_path / "mine")
    assert files(tmp_path / "mine" / "job")["index.html"] == b"final"


def test_records_that_no_gallery_can_be_made_of_are_collected_all_the_same(store, tmp_path, caplog):
    store.delete(KEYS.done)
    assert collect(JobFolder(store, KEYS), tmp_path / "mine").copied == COUNT
    assert "there is no gallery: " in caplog.text


def test_only_what_is_missing_or_wrong(store, tmp_path):
    collect(JobFolder(store, KEYS), tmp_path / "mine")
    images = tmp_path / "mine" / "job" / "images"
    (images / "000003.png").unlink()
    (images / "000004.png").write_bytes(b"cut off")
    again = collect(JobFolder(store, KEYS), tmp_path / "mine")
    assert (again.copied, again.present) == (2, COUNT - 2)
    assert (images / "000004.png").read_bytes() == b"image 4"


def test_an_image_that_is_not_its_record_s_is_named_and_not_copied(store, tmp_path):
    store.put(KEYS("images/000007.png"), b"other", overwrite=True)
    store.delete(KEYS("images/000008.png"))
    collected = collect(JobFolder(store, KEYS), tmp_path / "mine")
    assert sorted(collected.damaged) == ["images/000007.png", "images/000008.png"]
    assert collected.copied == COUNT - 2
    assert not (tmp_path / "mine" / "job" / "images" / "000007.png").exists()


def test_what_is_damaged_is_deleted_to_be_rendered_again(store):
    store.put(KEYS("images/000007.png"), b"image 8", overwrite=True)  # of the same size
    store.put(KEYS("images/000050.png"), b"cut", overwrite=True)
    store.delete(KEYS("images/000009.png"))
    before = files(store.root)
    assert remove_damaged(JobFolder(store, KEYS), images=COUNT) == 2
    gone = {"job/images/000007.png", "job/images/000050.png"}
    assert files(store.root) == {k: v for k, v in before.items() if k not in gone}
    assert remove_damaged(JobFolder(store, KEYS), images=COUNT) == 0


@pytest.mark.parametrize(
    ("damage", "repairs"),
    [
        ([], []),
        (["images/000007.png"], ["sdbatch resume job --store '{store}' --check", "or, of a job"]),
        (["inputs/{name}"], ["submit or run its manifest again"]),
    ],
)
def test_the_command_says_what_repairs_it(tmp_path, store, capsys, damage, repairs):
    name = f"{hashlib.sha256(b'picture').hexdigest()}.png"
    folder = tmp_path / "my store"
    store.root.rename(folder)
    store = LocalStore(folder)
    store.put(KEYS.input(name), b"picture")
    for path in damage:
        store.put(KEYS(path.format(name=name)), b"other", overwrite=True)
    code = ExitCode.STORE if damage else ExitCode.DONE
    command = ["collect", "job", str(tmp_path / "mine"), "--store", str(folder)]
    assert main(command) == code
    said = capsys.readouterr().out
    found = [line.split(maxsplit=1)[1] for line in said.splitlines() if line[:6] == "repair"]
    assert len(found) == len(repairs)
    for line, wanted in zip(found, repairs, strict=True):
        assert line.startswith(wanted.format(store=folder))
    assert main([*command, "--json"]) == code
    assert json.loads(capsys.readouterr().out)["repairs"] == found


def test_by_prompt(store, tmp_path):
    collected = collect(JobFolder(store, KEYS), tmp_path / "mine", containing="red RING")
    assert collected.copied == 10
    assert len(files(tmp_path / "mine" / "job")) == 10
    assert collect(JobFolder(store, KEYS), tmp_path / "mine", containing="cross").copied == 0


def starred(tmp_path, text):
    path = tmp_path / "stars.txt"
    path.write_text(text)
    return path


def test_by_stars(store, tmp_path):
    text = "# sdbatch stars of job\nimages/000003.png\n\n# mine\r\nimages/000060.png \r\n"
    stars = read_stars(starred(tmp_path, text), "job")
    assert stars == {"images/000003.png", "images/000060.png"}
    seen = []
    collected = collect(JobFolder(store, KEYS), tmp_path / "mine", stars=stars, tick=seen.append)
    assert (collected.copied, collected.damaged, seen) == (2, [], [1, 2])
    assert set(files(tmp_path / "mine" / "job")) == stars
    # With both, what is in both.
    both = collect(JobFolder(store, KEYS), tmp_path / "both", stars=stars, containing="red RING")
    assert (both.copied, set(files(tmp_path / "both" / "job"))) == (1, {"images/000060.png"})


def test_stars_of_pictures_that_are_not_there(store, tmp_path):
    unknown = {f"images/{n}.png" for n in range(7)}
    with pytest.raises(InputError) as caught:
        collect(JobFolder(store, KEYS), tmp_path / "mine", stars={*unknown, "images/000003.png"})
    named = ", ".join(f"images/{n}.png" for n in range(5))
    assert f"/job does not have 7 starred pictures: {named} and 2 more" in str(caught.value)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# sdbatch stars of other\nimages/a.png\n", "line 1: stars of 'other', and this is job"),
        ("# sdbatch stars of job\n", "names no picture"),
        ("images/a.png\n../etc/passwd\n", "line 2: '../etc/passwd' is no picture; expected a path"),
        ("images/../a.png", "line 1: 'images/../a.png' is no picture"),
    ],
)
def test_lists_that_are_not_stars_of_this_job(tmp_path, text, said):
    with pytest.raises(InputError, match=re.escape(said)):
        read_stars(starred(tmp_path, text), "job")


def test_lists_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"stars\.txt cannot be read: no such file"):
        read_stars(tmp_path / "stars.txt", "job")
    path = starred(tmp_path, "images/a.png\n" * 10)
    monkeypatch.setattr("jobs.client.stars.MAX_STARS_BYTES", 20)
    with pytest.raises(InputError, match="more than 20 bytes"):
        read_stars(path, "job")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="no text in UTF-8"):
        read_stars(path, "job")


def test_the_command_takes_stars(store, tmp_path, capsys):
    path = starred(tmp_path, "# sdbatch stars of job\nimages/000003.png\n")
    command = ["collect", "job", str(tmp_path / "mine"), "--store", str(store.root)]
    assert main([*command, "--from", str(path)]) == ExitCode.DONE
    assert capsys.readouterr().out.startswith("1 image copied (7 bytes), 0 were there already")
    path.write_text("images/x.png\n")
    assert main([*command, "--from", str(path)]) == ExitCode.BAD_INPUT
    assert "does not have 1 starred picture: images/x.png" in capsys.readouterr().err


def test_a_folder_that_is_no_job(tmp_path):
    with pytest.raises(NotFoundError, match="no finished images"):
        collect(JobFolder(LocalStore(tmp_path / "store"), KEYS), tmp_path / "mine")


def test_not_onto_itself(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="the job's own store"):
        refuse_same(store, tmp_path / "store")
    refuse_same(store, tmp_path / "mine")
