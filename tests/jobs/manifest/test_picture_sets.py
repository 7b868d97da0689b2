"""Init images and masks of a folder or a pattern."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from jobs.manifest import picture_sets
from tests.jobs.manifests import load, messages

HEAD = "defaults: {width: 64, height: 64}\n"


def picture(path: Path, shade: int, size: tuple[int, int] = (64, 64)) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """photos/ with 1, 2 and 10, two of which have a mask, and files that are none."""
    for number in (1, 2, 10):
        picture(tmp_path / "photos" / f"{number}.png", number)
    picture(tmp_path / "masks" / "1.png", 101)
    picture(tmp_path / "masks" / "2.jpg", 102)
    (tmp_path / "photos" / "1.txt").write_text("a caption")
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    return tmp_path


def made(folder: Path, prompts: str) -> list[tuple[str, str, str | None]]:
    """Prompt, init image and mask of each image, by the names of their files."""
    manifest = load(folder, f"{HEAD}prompts:\n{prompts}")
    called = manifest.input_names
    return [
        (
            task.prompt,
            called[task.init_image or ""],
            None if task.mask is None else called[task.mask],
        )
        for task in manifest.tasks()
    ]


@pytest.mark.parametrize("written", ["photos", "photos/", "'photos/*.png'", "'p*/*'"])
def test_a_prompt_is_drawn_from_each_picture(folder: Path, written: str):
    found = made(folder, f"- {{prompt: a, init_image: {written}}}\n")
    assert found == [("a", "1.png", None), ("a", "2.png", None), ("a", "10.png", None)]


def test_with_seeds_and_a_matrix(folder: Path):
    prompts = "- {prompt: a, init_image: 'photos/[12].png', seeds: [5, 6]}\n"
    manifest = load(folder, f"{HEAD}prompts:\n{prompts}matrix: {{guidance: [3, 5]}}")
    found = [
        (manifest.input_names[t.init_image or ""], t.sampling.guidance, t.sampling.seed)
        for t in manifest.tasks()
    ]
    assert found == [
        (f"{number}.png", guidance, seed)
        for number in (1, 2)
        for guidance in (3, 5)
        for seed in (5, 6)
    ]
    assert manifest.total == 8


def test_masks_go_by_the_names_of_files(folder: Path):
    found = made(folder, "- {prompt: a, init_image: 'photos/[12].png', mask: masks/}\n")
    assert found == [("a", "1.png", "1.png"), ("a", "2.png", "2.jpg")]
    assert made(folder, "- {prompt: a, init_image: photos/2.png, mask: masks}\n") == [
        ("a", "2.png", "2.jpg")
    ]


def test_one_mask_is_that_of_all(folder: Path):
    found = made(folder, "- {prompt: a, init_image: photos, mask: masks/1.png}\n")
    assert [mask for *_, mask in found] == ["1.png"] * 3


def test_in_defaults_it_is_of_every_prompt(folder: Path):
    head = "defaults: {width: 64, height: 64, init_image: photos}\n"
    manifest = load(folder, f"{head}prompts: [a, b]")
    assert [task.prompt for task in manifest.tasks()] == ["a"] * 3 + ["b"] * 3


@pytest.mark.parametrize("pattern", ["photos", "photos/*.png", "photos/1.png"])
def test_outside_of_the_manifests_folder_where_that_is_allowed(folder: Path, pattern: str):
    inside = folder / "inside"
    inside.mkdir()
    count = 1 if pattern.endswith("1.png") else 3
    for written in (f"{folder}/{pattern}", f"../{pattern}"):
        body = f"{HEAD}prompts:\n- {{prompt: a, init_image: '{written}'}}"
        assert load(inside, body, allow_outside=True).total == count


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("init_image: empty", "'empty' has no pictures (.png, .jpg, .jpeg, .webp)"),
        ("init_image: 'photos/*.gif'", "'photos/*.gif' has no pictures"),
        ("init_image: photos, mask: masks", "'masks' has none called '10'"),
        ("init_image: photos, mask: odd", "mask is 72×64 pixels, its init_image 64×64"),
        ("init_image: ../photos", "is outside the manifest's folder"),
        ("init_image: photos, mask: twice", "'twice' has 2 files called '1'"),
        ("init_image: broken", "broken/1.png"),
        ("init_image: none", "'none' does not exist"),
    ],
)
def test_what_cannot_be_matched_or_read(folder: Path, entry: str, said: str):
    for number in (1, 2, 10):
        picture(folder / "odd" / f"{number}.png", number, (72, 64))
    picture(folder / "twice" / "1.png", 3)
    picture(folder / "twice" / "1.jpg", 4)
    (folder / "broken").mkdir()
    (folder / "broken" / "1.png").write_bytes(b"no picture")
    found = messages(folder, f"{HEAD}prompts:\n- {{prompt: a, {entry}}}")
    assert any(said in message for message in found), found


def test_pictures_of_a_folder_are_bounded(folder: Path, monkeypatch):
    monkeypatch.setattr(picture_sets, "MOST_PICTURES", 2)
    (message,) = messages(folder, f"{HEAD}prompts:\n- {{prompt: a, init_image: photos}}")
    assert "'photos' names more than 2 pictures" in message


def test_a_picture_that_a_link_takes_from_outside_is_refused(folder: Path, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    picture(other / "secret.png", 9)
    (folder / "photos" / "3.png").symlink_to(other / "secret.png")
    (message,) = messages(folder, f"{HEAD}prompts:\n- {{prompt: a, init_image: photos}}")
    assert "is outside the manifest's folder" in message
