"""`sdbatch quota`, and what submitting says when a quota is used up."""

from __future__ import annotations

import pytest

from jobs.errors import ExitCode

JOBS = 2
IMAGES = 6  # of each job


def used_up(most: int) -> str:
    return (
        f"default may have {most} images to do at a time: other jobs have {IMAGES}, "
        f"and this one would have {IMAGES}; "
    )


def test_it_is_listed_with_what_is_to_do(commands):
    assert commands("quota").splitlines() == [
        "USER     IMAGES TO DO  AT MOST",
        "default  0             none",
    ]
    commands.submit()
    commands("quota", "anna", "--max-images", "20000")
    assert commands("quota", "*", "--max-images", 5).splitlines() == [
        "USER  IMAGES TO DO  AT MOST",
        "*                   5",
    ]
    assert commands("quota").splitlines() == [
        "USER     IMAGES TO DO  AT MOST",
        "*                      5",
        "anna     0             20,000",
        "default  6             5",
    ]
    assert commands.json("quota", "anna", "--max-images", "none") == {
        "quotas": [{"user": "anna", "to_do": 0, "max_images": 5}]
    }


def test_a_job_too_many_is_refused_before_anything_is_written(commands):
    first = commands.submit()["job"]
    commands("quota", "default", "--max-images", 2 * IMAGES - 1)
    refused = commands.submit("--job", "second", code=ExitCode.LEDGER)
    assert refused["error"].startswith(used_up(2 * IMAGES - 1))
    assert [info.key for info in commands.store.list("second")] == []
    assert commands.submit()["job"] == first  # what is there goes on
    commands("quota", "default", "--max-images", 2 * IMAGES)
    assert commands.submit("--job", "second")["new"] is True
    assert commands.json("status", "second")["submitter"] == "default"
    assert "submitter    default" in commands("status", "second")


def test_the_ledger_refuses_what_came_in_between(commands, monkeypatch):
    commands.submit()
    commands("quota", "default", "--max-images", IMAGES)
    monkeypatch.setattr("jobs.client.enter._check_quota", lambda *_: None)
    refused = commands.submit("--job", "second", code=ExitCode.LEDGER)
    assert refused["error"].startswith(used_up(IMAGES))
    commands("cancel", "shapes")
    assert commands.submit("--job", "second")["new"] is True


def test_retrying_is_refused_too(commands):
    job = commands.submit()["job"]
    commands("quota", "default", "--max-images", IMAGES)
    commands("cancel", job)
    commands.submit("--job", "second")
    assert used_up(IMAGES) in commands("retry", job, code=ExitCode.LEDGER)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["anna"], "USER and --max-images go together"),
        (["--max-images", "5"], "USER and --max-images go together"),
        (["anna", "--max-images", "many"], "'many' is not a number of images, or none"),
        (["anna", "--max-images", "-1"], "'-1' is not a number of images"),
        (["anna", "--max-images", "1" * 19], "is not a number of images"),
        (["anna", "--max-images", "1" * 14], "expected 0 to 1,000,000,000,000 images"),
        (["an na", "--max-images", "5"], "'an na' is no user's name: 1 to 100 characters"),
        (["", "--max-images", "5"], "'' is no user's name"),
    ],
)
def test_what_is_no_quota(commands, words, message):
    said = commands("quota", *words, code=ExitCode.BAD_INPUT)
    assert message in " ".join(said.split())
    assert commands.ledger.quotas() == {}
