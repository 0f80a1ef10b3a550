"""The observer's pages: a list of projects, and one project while it is built and afterwards.

The server renders everything, so that a page is whole without JavaScript; `page/observer.js` asks for the parts that have
changed when the event stream says so, and draws progress itself. Nothing comes from another host.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from functools import cache
from http import HTTPStatus
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from jinja2 import Environment, FunctionLoader, StrictUndefined
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from flops.errors import FlopsError, ProjectDecided, ProjectNotFound, TooMany
from flops.observer import words
from flops.observer.feed_cache import FeedCache, Projects
from flops.observer.view import advice, view
from flops_wire.manager import ENDED, STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from starlette.requests import Request
    from starlette.routing import BaseRoute

    from flops.observer.feed import Feed


#: Sent with the parts of a page, in milliseconds.
HEADER = "Flops-Settle"
_LEAST, _MOST = 0.15, 10.0
#: Seconds of pause for each request a second: 200 viewers then ask less than a hundred times a second altogether.
_WEIGHT = 0.02
#: Seconds over which requests are counted.
_MEMORY = 2.0


class Pace:
    """Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._rate = 0.0
        self._last = clock()

    def step(self) -> int:
        """One more request; the milliseconds until its sender is to ask again, at the earliest."""
        with self._guard:
            now = self._clock()
            self._rate = self._rate * math.exp((self._last - now) / _MEMORY) + 1 / _MEMORY
            self._last = now
            return round(min(_MOST, _LEAST + _WEIGHT * self._rate) * 1000)


#: Projects on one page of the list.
PER_PAGE = 50
_TEXT_LIMIT = 200
#: What of a project may change without an event of its own.
_CHANGING = ("state", "builder", "commit", "attempt", "waits_for")
_REFUSALS: dict[type[FlopsError], HTTPStatus] = {
    ProjectDecided: HTTPStatus.CONFLICT,
    TooMany: HTTPStatus.TOO_MANY_REQUESTS,
}
_FOREVER = "public, max-age=31536000, immutable"
#: The tab's icon tells the state, by the colours of the page.
_ICONS = {"accepted": "#55606e", "building": "#0b5cad", "images_ready": "#17703a", "failed": "#b3261e", "cancelled": "#55606e"}  # fmt: skip
_KINDS = {
    "observer.css": "text/css",
    "observer.js": "text/javascript",
    "favicon.svg": "image/svg+xml",
    **{f"{state}.svg": "image/svg+xml" for state in _ICONS},
}


class ObserverPages:
    """Routes for an ASGI application whose guard stands before them (who may look, who may change)."""

    def __init__(self, projects: Projects, *, login: bool = False) -> None:
        self._projects = projects
        self._shelf = FeedCache(projects)
        self._pace = Pace()
        self._login = login

    def routes(self) -> Sequence[BaseRoute]:
        one = "/projects/{project:str}"
        return [
            Route("/projects", self.list, methods=["GET"]),
            Route(one, self.show, methods=["GET"]),
            Route(f"{one}/live", self.live, methods=["GET"]),
            Route(f"{one}/cancel", self.cancel, methods=["POST"]),
            Route(f"{one}/again", self.again, methods=["POST"]),
            *(Route(address(name), self.asset, methods=["GET"]) for name in _KINDS),
        ]

    def list(self, request: Request) -> Response:
        state = request.query_params.get("state") or None
        state = state if state in STATES else None
        text = request.query_params.get("q", "")[:_TEXT_LIMIT].strip()
        asked = request.query_params.get("page", "1")[:9]
        number = max(1, int(asked)) if asked.isascii() and asked.isdigit() else 1
        found, total = self._projects.page(limit=PER_PAGE, offset=(number - 1) * PER_PAGE, state=state, text=text)
        filters = {key: value for key, value in (("state", state), ("q", text)) if value}

        def to(page: int) -> str:
            return f"/projects?{urlencode({**filters, 'page': page})}"

        return self._page(
            "list.html",
            projects=[{**one, "took": _took(one)} for one in found],
            total=total,
            state=state,
            text=text,
            number=number,
            pages=max(1, -(-total // PER_PAGE)),
            to=to,
            running=any(one["state"] not in ENDED for one in found),
        )

    def show(self, request: Request) -> Response:
        try:
            return self._project(request.path_params["project"], whole=request.query_params.get("log") == "all")
        except ProjectNotFound as error:
            return self._page("missing.html", HTTPStatus.NOT_FOUND, error=error)

    def live(self, request: Request) -> Response:
        """The parts of a project's page as they are now, with the log's lines after `?after=`; drawn once for all viewers."""
        project = request.path_params["project"]
        asked = request.query_params.get("after", "0")[:18]
        after = int(asked) if asked.isascii() and asked.isdigit() else 0
        try:
            document = self._projects.show(project)
            key = (after, *(document[name] for name in _CHANGING))
            parts = self._shelf.draw(project, key, lambda feed: self._parts(document, feed, after))
        except ProjectNotFound as error:
            return Response(error.message, HTTPStatus.NOT_FOUND, media_type="text/plain")
        return HTMLResponse(parts, headers={"Cache-Control": "no-store", HEADER: str(self._pace.step())})

    def cancel(self, request: Request) -> Response:
        return self._change(request, lambda project: self._projects.cancel(project) and project)

    def again(self, request: Request) -> Response:
        return self._change(request, lambda project: str(self._projects.again(project)["id"]))

    def asset(self, request: Request) -> Response:
        name = request.url.path.removeprefix("/static/").split(".", 1)[1]
        return Response(_resource(name), media_type=_KINDS[name], headers={"Cache-Control": _FOREVER})

    # --- inside ---
    def _change(self, request: Request, action: Any) -> Response:
        project = request.path_params["project"]
        try:
            target = action(project)
        except ProjectNotFound as error:
            return self._page("missing.html", HTTPStatus.NOT_FOUND, error=error)
        except FlopsError as error:
            return self._project(project, _REFUSALS.get(type(error), HTTPStatus.UNPROCESSABLE_ENTITY), refused=error)
        return RedirectResponse(f"/projects/{target}", HTTPStatus.SEE_OTHER)

    def _project(
        self,
        project: str,
        status: HTTPStatus = HTTPStatus.OK,
        *,
        refused: FlopsError | None = None,
        whole: bool = False,
    ) -> Response:
        document = self._projects.show(project)

        def drawn(feed: Feed) -> str:
            values = view(document, feed, after=0, now=time.time(), whole=whole)
            return self._render("project.html", refused=refused, **values)

        return HTMLResponse(self._shelf.draw(project, None, drawn), status)

    def _parts(self, document: Mapping[str, Any], feed: Feed, after: int) -> str:
        return self._render("parts.html", **view(document, feed, after=after, now=time.time()))

    def _page(self, name: str, status: HTTPStatus = HTTPStatus.OK, **values: Any) -> Response:
        return HTMLResponse(self._render(name, **values), status)

    def _render(self, name: str, **values: Any) -> str:
        common = {"login": self._login, "now": time.time(), "states": STATES}
        return str(_environment().get_template(name).render(common | values))


def _took(document: Mapping[str, Any]) -> float | None:
    """Up to now, where it has not ended."""
    begun, ended = words.epoch(document["created"]), words.epoch(document["ended"])
    return (ended or time.time()) - begun if begun is not None else None


@cache
def address(name: str) -> str:
    """Where a static file is had; another one has another address."""
    digest = hashlib.sha256(_resource(name).encode()).hexdigest()[:12]
    return f"/static/{digest}.{name}"


@cache
def _resource(name: str) -> str:
    colour = _ICONS.get(name.removesuffix(".svg"))
    if colour:
        return _resource("favicon.svg").replace(_ICONS["building"], colour)
    return (resources.files("flops.observer") / "page" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_resource),
    )
    for filtering in (
        words.amount,
        words.span,
        words.clock,
        words.plain,
        words.line,
        words.short,
        words.ago,
        words.revision,
        advice,
    ):
        made.filters[filtering.__name__] = filtering
    made.filters |= {"name": words.name, "home": words.home}
    made.globals |= {"address": address, "commit_page": words.commit_page, "line_page": words.line_page}
    return made
