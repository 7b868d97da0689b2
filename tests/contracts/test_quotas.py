"""Quotas of submitters, over each ledger: jobs of ten images, and how many may be to do."""

from __future__ import annotations

import pytest

from jobs.errors import InputError, QuotaError
from jobs.ledger.base import Ledger
from jobs.ledger.quotas import OTHERS
from jobs.ledger.types import JobState, NewJob
from tests.ledgers import failure, new_job, take


def job_of(job_id: str, submitter: str = "anna") -> NewJob:
    return new_job(job_id, submitter=submitter)


def settle_first_shard(ledger: Ledger, job_id: str) -> None:
    """Four images are done."""
    ledger.publish(job_id, 9)
    ledger.settle(take(ledger, 0, job_id=job_id), range(4))


def test_there_are_none_until_they_are_set(ledger):
    assert ledger.quotas() == {}
    for submitter, images in (("anna", 25), (OTHERS, 5), ("ben", 0)):
        ledger.set_quota(submitter, images)
    assert ledger.quotas() == {"anna": 25, OTHERS: 5, "ben": 0}
    ledger.set_quota("ben", None)
    ledger.set_quota("ben", None)  # there is none any more
    assert ledger.quotas() == {"anna": 25, OTHERS: 5}


def test_a_job_says_who_entered_it_last(ledger):
    ledger.create(job_of("job"))
    assert ledger.status("job").submitter == "anna"
    ledger.create(job_of("job", "ben"))
    assert ledger.status("job").submitter == "ben"


def test_a_job_too_many_is_refused_and_nothing_of_it_is_there(ledger):
    ledger.set_quota("anna", 25)
    ledger.create(job_of("a"))
    ledger.create(job_of("b"))
    told = "anna may have 25 images to do at a time: other jobs have 20, and this one would "
    with pytest.raises(QuotaError, match=f"^{told}have 10; "):
        ledger.create(job_of("c"))
    with pytest.raises(QuotaError, match=f"^{told}have 6; "):
        ledger.create(job_of("c"), done=range(4))
    assert ledger.job_ids(9) == ["b", "a"]
    assert ledger.create(job_of("c"), done=range(5))


def test_of_others_no_more_is_asked(ledger):
    ledger.set_quota("anna", 10)
    ledger.create(job_of("a"))
    ledger.create(job_of("b", "ben"))
    ledger.create(job_of("c", "ben"))
    ledger.set_quota(OTHERS, 10)
    with pytest.raises(QuotaError, match=r"^ben may have 10 images"):
        ledger.create(job_of("d", "ben"))


def test_what_is_settled_or_cancelled_counts_no_more(ledger):
    ledger.set_quota("anna", 20)
    for name in ("a", "b"):
        ledger.create(job_of(name))
    ledger.publish("a", 9)
    lease = take(ledger, 0, job_id="a")
    ledger.settle(lease, [0, 1, 2], [failure(3)])
    ledger.create(new_job("c", [4], submitter="anna"))
    ledger.set_state("b", JobState.CANCELLED)
    ledger.create(job_of("d"))
    with pytest.raises(QuotaError):
        ledger.create(new_job("e", [1], submitter="anna"))


def test_a_paused_job_counts(ledger):
    ledger.set_quota("anna", 10)
    ledger.create(job_of("a"))
    ledger.set_state("a", JobState.PAUSED)
    with pytest.raises(QuotaError):
        ledger.create(job_of("b"))


def test_jobs_that_are_there_go_on(ledger):
    ledger.create(job_of("a"))
    ledger.set_quota("anna", 3)
    assert ledger.create(job_of("a")) is False
    settle_first_shard(ledger, "a")
    ledger.set_state("a", JobState.PAUSED)
    assert ledger.set_state("a", JobState.ACTIVE) == JobState.ACTIVE


def test_what_was_cancelled_comes_back_as_a_new_job_would(ledger):
    ledger.set_quota("anna", 10)
    ledger.create(job_of("a"))
    settle_first_shard(ledger, "a")
    ledger.set_state("a", JobState.CANCELLED)
    ledger.create(new_job("b", [5], submitter="anna"))
    for again in (lambda: ledger.create(job_of("a")), lambda: ledger.retry("a")):
        with pytest.raises(QuotaError, match="other jobs have 5, and this one would have 6;"):
            again()
        assert ledger.status("a").state == JobState.CANCELLED
    ledger.set_quota("anna", 11)
    ledger.retry("a")
    assert ledger.status("a").state == JobState.ACTIVE


def test_who_takes_over_a_job_needs_room_for_it(ledger):
    ledger.create(job_of("a"))
    ledger.set_quota("ben", 9)
    with pytest.raises(QuotaError, match=r"^ben may have 9 images"):
        ledger.create(job_of("a", "ben"))
    assert ledger.status("a").submitter == "anna"
    settle_first_shard(ledger, "a")
    assert ledger.create(job_of("a", "ben")) is False


@pytest.mark.parametrize(
    ("submitter", "images"),
    [("", 1), ("an na", 1), ("x" * 101, 1), ("a\0", 1), ("anna", -1), ("anna", 10**12 + 1)],
)
def test_no_quota(ledger, submitter, images):
    with pytest.raises(InputError, match=r"expected 0 to|is no user's name"):
        ledger.set_quota(submitter, images)
    assert ledger.quotas() == {}
