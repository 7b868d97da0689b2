"""The server's paths: the page's files, what the ledger holds, pictures, events, changes.

/  /jobs/<job>                          the page; its files are below /static/
/api/jobs  /api/now  /api/jobs/<job>    what there is, as JSON
/api/jobs/<job>/pictures                facts of finished images
/api/jobs/<job>/<change>                a POST changes the job (`jobs.client.changes`)
/api/session                            a POST gives the cookie that lets images be read
/api/events                             what happens from now on
/jobs/<job>/picture/<index>  /jobs/<job>/thumbnail/<index>
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from jobs.client.changes import CHANGES
from jobs.dashboard.access import Access
from jobs.dashboard.feed import Feed, failures_in, pictures_in
from jobs.dashboard.files import page_files
from jobs.dashboard.guard import Guard
from jobs.dashboard.hub import Hub, written
from jobs.dashboard.index import RecordIndex
from jobs.dashboard.pictures import Pictures, Served
from jobs.dashboard.queries import MOST_IMAGES, number, numbers, search
from jobs.dashboard.views import short
from jobs.dashboard.watcher import Watcher
from jobs.errors import (
    DamagedError,
    InputError,
    LedgerError,
    NotFoundError,
    QuotaError,
    SdbatchError,
    StoreError,
)
from jobs.ledger.base import Ledger
from jobs.ledger.types import JobStatus, News
from jobs.storage import Store

log = logging.getLogger(__name__)

MOST_LISTED = 50
"""Jobs of one page of the list, and pictures of one answer; a page asks again for more."""

MOST_SEARCHED = 100_000
"""Jobs whose names are looked at, the latest ones."""

MOST_FAILURES = 100
NEWS_LOOKED_AT = 1000
EVENTS_LOOKED_AT = 4000  # all that a ledger keeps of a job

_STATUS: Mapping[type[SdbatchError], int] = {
    InputError: 400,
    NotFoundError: 404,
    DamagedError: 502,
    StoreError: 502,
    QuotaError: 409,
    LedgerError: 503,
}


@dataclass
class Dashboard:
    """The application and what it stands on. open_store: from a job's address in the ledger to its
    store, for reading. price: of a worker's hour in euros, or None.
    """

    ledger: Ledger
    access: Access
    open_store: Callable[[str], Store]
    price: float | None = None

    def __post_init__(self) -> None:
        self.hub = Hub()
        self.feed = Feed(self.ledger, self.price)
        opened = lru_cache(maxsize=16)(self.open_store)
        self.pictures = Pictures(RecordIndex(self.ledger, opened))
        app = Starlette(
            routes=[
                Route("/", self.page),
                Route("/jobs/{job}", self.page),
                Route("/static/{name}", self.file),
                Route("/api/now", self.now),
                Route("/api/jobs", self.jobs),
                Route("/api/jobs/{job}", self.job),
                Route("/api/jobs/{job}/pictures", self.facts),
                Route("/api/jobs/{job}/{change}", self.change, methods=["POST"]),
                Route("/api/session", self.session, methods=["POST"]),
                Route("/api/events", self.events),
                Route("/jobs/{job}/picture/{index:int}", self.picture),
                Route("/jobs/{job}/thumbnail/{index:int}", self.thumbnail),
            ],
            exception_handlers={SdbatchError: _failed, HTTPException: _refused, Exception: _odd},
            lifespan=self._watching,
        )
        self.app: ASGIApp = Guard(app, self.access)  # around all of it, also errors nobody foresaw

    @contextlib.asynccontextmanager
    async def _watching(self, app: Starlette) -> AsyncIterator[None]:
        watcher = Watcher(self.feed, self.hub)
        watcher.start()
        yield
        watcher.stop()

    # The page

    async def page(self, request: Request) -> Response:
        return page_files()["index.html"].response()

    async def file(self, request: Request) -> Response:
        found = page_files().get(request.path_params["name"])
        return Response(status_code=404) if found is None else found.response()

    # What there is

    def jobs(self, request: Request) -> Response:
        """A part of the list: the latest jobs whose names have a text in them."""
        words, start = search(request), number(request, "from", 0, MOST_SEARCHED)
        ids = self.ledger.job_ids(MOST_SEARCHED)
        found = [job_id for job_id in ids if words in job_id.casefold()] if words else ids
        listed = found[start : start + MOST_LISTED]
        return JSONResponse(
            {
                "jobs": self.feed.jobs(self.ledger.statuses(listed)),
                "total": len(found),
                "next": start + MOST_LISTED if len(found) > start + MOST_LISTED else None,
            }
        )

    def now(self, request: Request) -> Response:
        """Workers, the newest pictures and failures of all jobs."""
        workers = self.feed.workers()
        news = self._of_jobs_there(self.ledger.news(limit=NEWS_LOOKED_AT))
        return JSONResponse(
            {
                "now_s": self.ledger.time_s(),
                "workers": workers,
                "pictures": pictures_in(news),
                "failures": failures_in(news),
                "price": self.price,
            }
        )

    def _of_jobs_there(self, news: Sequence[News]) -> list[News]:
        """News without those of jobs that were forgotten."""
        ids = list(dict.fromkeys(one.job_id for one in news))
        states = dict(zip(ids, self.ledger.states(ids), strict=True))
        return [one for one in news if states[one.job_id] is not None]

    def job(self, request: Request) -> Response:
        """One job, with its first failures and its newest pictures."""
        (status,) = self._statuses(request.path_params["job"])
        events = self.ledger.events(status.job_id, limit=EVENTS_LOOKED_AT)
        failures = self.ledger.failures(status.job_id, MOST_FAILURES)
        return JSONResponse(
            {
                "now_s": self.ledger.time_s(),
                "job": self.feed.jobs([status])[0],
                "failures": [
                    {"job": status.job_id, "index": one.index, "reason": short(one.reason)}
                    for one in failures
                ],
                "pictures": pictures_in(News(status.job_id, event) for event in events),
            }
        )

    def facts(self, request: Request) -> Response:
        """Facts of the images that are named, or of those before one."""
        job_id = request.path_params["job"]
        if "images" in request.query_params:
            wanted = numbers(request, "images", MOST_LISTED)
            return JSONResponse({"pictures": self.pictures.facts(job_id, wanted)})
        before = number(request, "before", MOST_IMAGES, MOST_IMAGES)
        found, stop = self.pictures.before(job_id, before, MOST_LISTED)
        return JSONResponse({"pictures": found, "before": stop})

    def _statuses(self, job_id: str) -> list[JobStatus]:
        """The status of one job, also where its entry cannot be read. Raises `NotFoundError`."""
        found = self.ledger.statuses([job_id])
        if not found:
            raise NotFoundError(f"{job_id:.100}: no such job in the ledger")
        return found

    # Pictures

    def picture(self, request: Request) -> Response:
        return _shown(request, self.pictures.picture(*_image(request)))

    def thumbnail(self, request: Request) -> Response:
        return _shown(request, self.pictures.thumbnail(*_image(request)))

    # Changes

    def change(self, request: Request) -> Response:
        job_id, name = request.path_params["job"], request.path_params["change"]
        if name not in CHANGES:
            raise InputError(f"{name:.40} is no change; there are {', '.join(CHANGES)}")
        said = CHANGES[name](self.ledger, job_id)
        log.info("%s: %s", job_id, name)
        return JSONResponse({"said": said, "job": self.feed.jobs([self.ledger.status(job_id)])[0]})

    async def session(self, request: Request) -> Response:
        """Lets a browser that has the token ask for images and events, where it cannot tell it."""
        answer = Response(status_code=204)
        if not self.access.on_loopback:
            answer.set_cookie(
                self.access.cookie, self.access.cookie_value, httponly=True, samesite="strict"
            )
        return answer

    # Events

    async def events(self, request: Request) -> Response:
        if self.hub.full:
            return JSONResponse({"error": "too many pages are open on this server"}, 503)
        first = written(("ledger", {"error": self.feed.away}))
        return StreamingResponse(self.hub.listen(first), media_type="text/event-stream")


def _image(request: Request) -> tuple[str, int]:
    """The job and the image that a path names."""
    return request.path_params["job"], request.path_params["index"]


def _shown(request: Request, served: Served) -> Response:
    """A picture, unless the browser has it: it asks each time, as an image may be made again."""
    headers = {"etag": f'"{served.tag}"', "cache-control": "private, no-cache"}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(served.data, media_type=served.media_type, headers=headers)


async def _failed(request: Request, error: Exception) -> Response:
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
    return JSONResponse({"error": str(error)}, status)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


async def _odd(request: Request, error: Exception) -> Response:
    """An error that nobody foresaw: the server's log has it whole."""
    return JSONResponse({"error": f"unexpected {type(error).__name__}"}, 500)
