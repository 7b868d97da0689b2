"""Grids: which images stand where, also those that are not there, and what a browser shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from jobs.cli.root import main
from jobs.errors import ExitCode, InputError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.prepare import prepare
from jobs.folder.records import dump_lines, write_failures
from jobs.manifest.load import load_manifest
from jobs.report import grid_sheets
from jobs.report.axes import chosen, varying
from jobs.report.grid_files import MOST_IMAGES, write_grid
from jobs.storage import LocalStore
from jobs.task import Failure, LoraUse, Task, VaeUse
from sd_core.spec import Sampling
from tests.jobs.report.browser import Browser
from tests.jobs.report.samples import HOSTILE
from tests.worker.samples import MODEL, RENDER, pixels
from worker.output.encode import encode_image
from worker.output.record import image_record, record_line

SWEEP = """\
version: 1
name: sweep
defaults: {width: 64, height: 96, steps: 2, seeds: [7, 8]}
matrix: {guidance: [7.5, 1, 2], sampler: [plms, ddim]}
prompts: [a ring, a star]
"""


def enter(folder: Path, text: str, *, without: range = range(0)) -> JobFolder:
    """A job whose images are there, but for some."""
    (folder / "job.yaml").write_text(text)
    manifest = load_manifest(folder / "job.yaml")
    made = JobFolder(LocalStore(folder / "out"), JobKeys(manifest.job_id()))
    prepare(manifest, made)
    lines = []
    for task in manifest.tasks():
        if task.index in without:
            continue
        record = image_record(task, MODEL, RENDER)
        size = {"width": task.sampling.width, "height": task.sampling.height}
        data = encode_image(pixels(task.index, **size), record, task.format)
        key = made.keys.image(task.name, record["spec"], task.format)
        made.put(key, data)
        lines.append(record_line(record, made.keys.path(key), data))
    made.put(made.keys.records(0), dump_lines(lines))
    return made


def task(index: int = 0, **values) -> Task:
    return Task(index, "n", values.pop("prompt", "p"), "", Sampling(), **values)


class TestAxes:
    def test_numbers_are_ordered_and_texts_are_as_they_came(self, tmp_path):
        (tmp_path / "job.yaml").write_text(SWEEP)
        found = varying(list(load_manifest(tmp_path / "job.yaml").tasks()))
        assert {axis.name: axis.labels for axis in found} == {
            "guidance": ["1", "2", "7.5"],
            "sampler": ["plms", "ddim"],
            "seed": ["7", "8"],
            "prompt": ["a ring", "a star"],
        }

    def test_what_images_bring_along(self):
        ink = LoraUse("ink", "a" * 64)
        tasks = [
            task(meta=(("sku", "1"),)),
            task(loras=(ink,), vae=VaeUse("soft", "b" * 64), model="v1"),
            task(loras=(LoraUse("ink", "a" * 64, 0.5, 0.25), LoraUse("pen", "c" * 64, 0.5, 0.5))),
        ]
        assert {axis.name: axis.labels for axis in varying(tasks)} == {
            "model": ["", "v1"],
            "vae": ["model", "soft"],
            "loras": ["none", "ink", "ink:0.5:0.25 pen:0.5"],
            "meta.sku": ["1", ""],
        }

    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            (("guidence", None, None), "'guidence' is no axis; did you mean 'guidance'?"),
            (("nothing", None, None), "'nothing' is no axis; its images differ in sampler, guid"),
            ((None, "steps", None), "steps is the same in all images of the job; its images"),
            ((None, None, "meta.a"), "meta.a is the same in all images"),
            (("seed", None, "seed"), "two axes are the same"),
        ],
    )
    def test_axes_that_there_are_not(self, tmp_path, asked, said):
        (tmp_path / "job.yaml").write_text(SWEEP)
        found = varying(list(load_manifest(tmp_path / "job.yaml").tasks()))
        with pytest.raises(InputError) as caught:
            chosen(found, asked)
        assert str(caught.value).startswith(said)

    def test_too_many_values(self):
        tasks = [task(n, prompt=f"p{n}") for n in range(201)]
        with pytest.raises(InputError, match="prompt has 201 values; a grid has room for 200"):
            chosen(varying(tasks), ("prompt", None, None))
        assert chosen(varying(tasks), (None, None, None)) == [None, None, None]


def places(grid):
    """Indices of the images of each cell, section by section."""
    return [
        {cell: [picture.task.index for picture in pictures] for cell, pictures in one.cells.items()}
        for one in grid.sections
    ]


def test_each_image_is_in_its_cell(tmp_path):
    made = enter(tmp_path, SWEEP)
    grid = write_grid(made, tmp_path / "grid", ("guidance", "sampler", "prompt"))
    # Images come prompt by prompt, by 7.5, 1, 2, by sampler, by seed.
    ring = {
        (2, 0): [0, 1],
        (2, 1): [2, 3],
        (0, 0): [4, 5],
        (0, 1): [6, 7],
        (1, 0): [8, 9],
        (1, 1): [10, 11],
    }
    star = {cell: [index + 12 for index in indices] for cell, indices in ring.items()}
    assert places(grid) == [ring, star]
    assert [section.title for section in grid.sections] == ["prompt: a ring", "prompt: a star"]
    assert (grid.shown, grid.missing, grid.pages) == (24, 0, ["grid-000.png", "grid-001.png"])
    with (
        Image.open(tmp_path / "grid/grid-000.png") as page,
        Image.open(tmp_path / "grid/images/000004.jpg") as first,
    ):
        # The first cell's first picture, below the labels.
        x, y = grid_sheets.GAP + grid_sheets.LABEL_WIDTH + grid_sheets.GAP, page.height
        below = page.crop((x, 0, x + first.width, y)).convert("L")
        column = [below.getpixel((first.width // 2, row)) for row in range(y)]
        assert len(set(column)) > 20


def test_without_axes_it_takes_what_suits(tmp_path):
    grid = write_grid(enter(tmp_path, SWEEP), tmp_path / "grid", (None, None, None))
    assert [axis and axis.name for axis in (grid.x, grid.y, grid.z)] == [
        *("sampler", "prompt", "guidance")
    ]
    one = tmp_path / "one"
    one.mkdir()
    alone = enter(one, "version: 1\ndefaults: {width: 64, height: 64}\nprompts: [a]\n")
    grid = write_grid(alone, one / "grid", (None, None, None))
    assert places(grid) == [{(0, 0): [0]}]
    assert grid.pages == ["grid-000.png"]


def test_what_is_not_there_leaves_its_place_and_says_why(tmp_path):
    made = enter(tmp_path, SWEEP, without=range(2, 4))
    write_failures(made, [Failure(3, "n", "a ring", 8, "broke")])
    key = made.keys(next(iter(made.list(made.keys.images_prefix))).key.partition("/")[2])
    made.put(key, b"damaged", overwrite=True)
    grid = write_grid(made, tmp_path / "grid", ("guidance", "sampler", "prompt"))
    assert (grid.shown, grid.missing) == (21, 3)
    page = (tmp_path / "grid/index.html").read_text()
    for why in ("not there yet", "failed", "damaged"):
        assert page.count(f">{why}</span>") == 1
    assert "21 images, 3 missing" in page


def test_large_grids_have_several_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(grid_sheets, "SIDE", 500)
    made = enter(tmp_path, SWEEP)
    grid = write_grid(made, tmp_path / "grid", ("seed", "guidance", None))
    sizes = []
    for name in grid.pages:
        with Image.open(tmp_path / "grid" / name) as page:
            sizes.append(page.size)
    assert len(grid.pages) > 1
    assert max(max(size) for size in sizes) < 1600
    monkeypatch.setattr(grid_sheets, "MOST_PAGES", 1)
    assert len(write_grid(made, tmp_path / "grid", ("seed", "guidance", None)).pages) == 1
    assert len(list((tmp_path / "grid").glob("*.png"))) == 1  # those of before are gone


def test_a_job_that_is_too_large(tmp_path):
    text = SWEEP.replace("[7, 8]", f"{{start: 0, count: {MOST_IMAGES}}}")
    (tmp_path / "job.yaml").write_text(text)
    manifest = load_manifest(tmp_path / "job.yaml")
    made = JobFolder(LocalStore(tmp_path / "out"), JobKeys("many"))
    prepare(manifest, made)
    with pytest.raises(InputError, match="60,000 images; a grid is made of at most 5,000"):
        write_grid(made, tmp_path / "grid", (None, None, None))
    assert not (tmp_path / "grid").exists()


class TestCommand:
    def run(self, capsys, *words, code=ExitCode.DONE):
        assert main(["grid", *map(str, words)]) == code
        said = capsys.readouterr()
        return said.out + said.err

    def test_of_a_folder_and_of_a_store(self, tmp_path, capsys, monkeypatch):
        made = enter(tmp_path, SWEEP)
        monkeypatch.chdir(tmp_path)
        said = self.run(capsys, Path("out") / made.keys.job_id, "--x", "guidance", "--y", "sampler")
        name = f"grid-{made.keys.job_id}"
        assert said.splitlines() == [
            "x         guidance, 3 values",
            "y         sampler, 2 values",
            "images    24",
            f"page      {name}/index.html",
            f"sheets    {name}/grid-000.png",
        ]
        document = json.loads(
            self.run(capsys, made.keys.job_id, "--store", "out", "--output", "g", "--json")
        )
        assert document["axes"]["x"] == {"name": "sampler", "values": ["plms", "ddim"]}
        assert (document["images"], document["page"]) == (24, "g/index.html")
        assert all(Path(sheet).is_file() for sheet in document["sheets"])

    def test_what_cannot_be_drawn(self, tmp_path, capsys, monkeypatch):
        made = enter(tmp_path, SWEEP)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "file").write_text("")
        where = Path("out") / made.keys.job_id
        bad = ExitCode.BAD_INPUT
        assert "is no folder of a job" in self.run(capsys, "out/none", code=bad)
        assert "is no axis" in self.run(capsys, where, "--x", "y", code=bad)
        assert "cannot be written" in self.run(capsys, where, "--output", "file/g", code=bad)
        assert "missing" in self.run(capsys, "none", "--store", "out", code=ExitCode.NOT_FOUND)


def test_in_a_browser(tmp_path):
    """Texts of others stay texts, all thumbnails load, and images are a click away."""
    prompts = json.dumps([prompt for prompt in HOSTILE if "\ud800" not in prompt])
    made = enter(tmp_path, SWEEP.replace("[a ring, a star]", prompts))
    write_grid(made, tmp_path / "grid", ("guidance", "prompt", "sampler"))
    with Browser() as browser:
        browser.open((tmp_path / "grid/index.html").as_uri())
        assert browser.run("document.title") == made.keys.job_id
        assert browser.run("document.querySelectorAll('table').length") == 2
        rows = browser.run("document.querySelectorAll('tbody')[0].rows.length")
        assert rows == len(json.loads(prompts))
        first = browser.run("document.querySelector('tbody th').textContent")
        assert first == json.loads(prompts)[0]
        link = browser.run("document.querySelector('td a').href")
        assert Path(link.removeprefix("file://")).is_file()
        assert browser.messages == []
