"""The gate in front of every answer: who may ask, and what a browser may do with the answer."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.dashboard.access import Access

POLICY = "; ".join(
    [
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'"),
        *("connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    ]
)
"""Content-Security-Policy: nothing but the server's own files, and no script in a page."""

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""Headers of every answer that does not have its own."""

NO_TOKEN = (
    "this needs the token: open the whole address that `sdbatch dashboard` printed, with "
    "#token=… at its end"
)


class Guard:
    """Lets a request through to `app`, or refuses it.

    Pages and their scripts are for all, as they hold nothing of any job; data needs the right to
    read, and a POST the token.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(Request(scope))
        answer = self._app if refusal is None else JSONResponse({"error": refusal}, 403)
        await answer(scope, receive, with_headers)

    def _refusal(self, request: Request) -> str | None:
        access, headers = self._access, request.headers
        if not access.knows_host(headers.get("host", "")):
            return "this server is not called so; open the address that `sdbatch dashboard` printed"
        if request.method == "POST":
            if not access.same_origin(headers):
                return "another site's page asks for this"
            return None if access.may_change(headers) else NO_TOKEN
        if _holds_data(request.url.path) and not access.may_read(headers, request.cookies):
            return NO_TOKEN
        return None


def _holds_data(path: str) -> bool:
    return path.startswith(("/api/", "/jobs/")) and not is_page(path)


def is_page(path: str) -> bool:
    """True for the path of a job's page, `/jobs/<job>`, which is the same file for all of them."""
    parts = path.split("/")
    return len(parts) == 3 and parts[1] == "jobs"
