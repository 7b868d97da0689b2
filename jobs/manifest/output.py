"""Where a manifest's images go, as what, and how many at most: checks beyond one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jobs.budget import Budget
from jobs.manifest.naming import DEFAULT_TEMPLATE
from jobs.manifest.problems import Place, ProblemList
from jobs.manifest.scalars import unreadable
from jobs.task import DEFAULT_QUALITY, IMAGE_FORMATS
from jobs.webhook import check_url


@dataclass(frozen=True)
class Output:
    """Where images go, and as what.

    store: a folder or an s3:// address; None leaves it to the settings. quality: of jpeg and webp.
    webhook: URL that is told when a submitted job ends. thumbnails: whether large images get some.
    dataset: the form of a data set that is written beside the images.
    """

    store: str | None = None
    format: str = IMAGE_FORMATS[0]
    name: str = DEFAULT_TEMPLATE
    quality: int = DEFAULT_QUALITY
    webhook: str | None = None
    thumbnails: bool = True
    dataset: Literal["webdataset"] | None = None


def read_output(head: Mapping[str, Any], place: Place, problems: ProblemList) -> Output:
    """The output of a manifest. head: all but its prompts. What is wrong becomes problems."""
    given = head.get("output", {})
    store = given.get("store")
    bad = None if store is None else unreadable(store)
    if bad is not None:
        problems.at(place, ("output", "store"), f"character {bad} is not allowed")
    format = given.get("format", Output.format)
    format = "jpeg" if format == "jpg" else format
    if format == "png" and "quality" in given:
        message = "quality goes with format jpeg or webp; png loses nothing"
        problems.at(place, ("output", "quality"), message, of_key=True)
    webhook = given.get("webhook")
    wrong = None if webhook is None else check_url(webhook)
    if wrong is not None:
        problems.at(place, ("output", "webhook"), wrong)
    return Output(
        store,
        format,
        given.get("name", Output.name),
        given.get("quality", Output.quality),
        webhook,
        given.get("thumbnails", Output.thumbnails),
        given.get("dataset"),
    )


def read_budget(head: Mapping[str, Any], place: Place, problems: ProblemList) -> Budget | None:
    """The budget of a manifest. head: all but its prompts. What is wrong becomes problems."""
    given = head.get("budget")
    if not given:
        return None
    for key, other in (("money", "price"), ("price", "money")):
        if key in given and other not in given:
            problems.at(place, ("budget", key), f"{key} needs {other}", of_key=True)
    return Budget(**given)
