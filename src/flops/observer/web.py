"""The observer's pages: a list of projects, and one project while it is built and afterwards.

The server renders everything, so that a page is whole without JavaScript; `page/observer.js` asks for the parts that have
changed when the event stream says so, and draws progress itself. Nothing comes from another host.
"""

from __future__ import annotations

import hashlib
import time
from functools import cache
from http import HTTPStatus
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from jinja2 import Environment, FunctionLoader, StrictUndefined
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from flops.errors import FlopsError, ProjectDecided, ProjectNotFound
from flops.observer import words
from flops.observer.shelf import Projects, Shelf
from flops.observer.sizes import layers, stage_seconds
from flops.observer.state import Level
from flops.observer.timeline import WIDTH, timeline
from flops_wire.manager import ENDED, PROJECTS, STATES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request
    from starlette.routing import BaseRoute

    from flops.observer.feed import Feed
    from flops.observer.state import Card

#: Projects on one page of the list.
PER_PAGE = 50
_TEXT_LIMIT = 200
_FOREVER = "public, max-age=31536000, immutable"
_KINDS = {"observer.css": "text/css", "observer.js": "text/javascript", "favicon.svg": "image/svg+xml"}


class ObserverPages:
    """Routes for an ASGI application whose guard stands before them (who may look, who may change)."""

    def __init__(self, projects: Projects, *, login: bool = False) -> None:
        self._projects = projects
        self._shelf = Shelf(projects)
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
            return self._project(request.path_params["project"])
        except ProjectNotFound as error:
            return self._page("missing.html", HTTPStatus.NOT_FOUND, error=error)

    def live(self, request: Request) -> Response:
        """The parts of a project's page as they are now, with the log's lines after `?after=`."""
        asked = request.query_params.get("after", "0")[:18]
        after = int(asked) if asked.isascii() and asked.isdigit() else 0
        try:
            view = self._view(request.path_params["project"], after=after)
        except ProjectNotFound as error:
            return Response(error.message, HTTPStatus.NOT_FOUND, media_type="text/plain")
        return HTMLResponse(_template("parts.html").render(**view), headers={"Cache-Control": "no-store"})

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
            status = HTTPStatus.CONFLICT if isinstance(error, ProjectDecided) else HTTPStatus.UNPROCESSABLE_ENTITY
            return self._project(project, status, told=error)
        return RedirectResponse(f"/projects/{target}", HTTPStatus.SEE_OTHER)

    def _project(self, project: str, status: HTTPStatus = HTTPStatus.OK, told: FlopsError | None = None) -> Response:
        return self._page("project.html", status, told=told, **self._view(project, after=0))

    def _view(self, project: str, *, after: int) -> dict[str, Any]:
        document = self._projects.show(project)
        return self._shelf.read(project, lambda feed: _view(document, feed, after=after))

    def _page(self, name: str, status: HTTPStatus = HTTPStatus.OK, **values: Any) -> Response:
        now = time.time()
        return HTMLResponse(
            _template(name).render({"login": self._login, "now": now, "states": STATES} | values), status
        )


def _view(document: Mapping[str, Any], feed: Feed, *, after: int) -> dict[str, Any]:
    """All that the templates of a project show, at one moment."""
    now = time.time()
    outcome = feed.outcome
    result = outcome.result if outcome else None
    begun = words.epoch(document["created"])
    ended = words.epoch(document["ended"])
    return {
        "project": document,
        "now": now,
        "over": document["state"] in ENDED,
        # the log stands still once nothing of the builder is left
        "still": document["state"] in ENDED and document["builder"] in ("none", "removed"),
        "attempts": feed.attempts,
        "bars": timeline(feed.attempts, now=now),
        "width": WIDTH,
        "lines": [line for line in feed.lines if line.sequence > after],
        "last": feed.last,
        "wrong": _wrong(feed),
        "notes": [card for card in feed.cards if card.level is Level.NOTE],
        "adjustments": feed.adjustments,
        "images": feed.images,
        "outcome": outcome,
        "layers": layers(result),
        "spent": stage_seconds(result),
        "result": result,
        "tagging": feed.tagging,
        "lasted": (ended or now) - begun if begun is not None else None,
        "events": f"{PROJECTS}/{document['id']}/events",
    }


def _wrong(feed: Feed) -> Sequence[Card]:
    """Every place that a failure is about; the failure itself where it is about none."""
    outcome = feed.outcome
    return (outcome.findings or outcome.cards) if outcome else ()


def _took(document: Mapping[str, Any]) -> float | None:
    begun, ended = words.epoch(document["created"]), words.epoch(document["ended"])
    return ended - begun if begun is not None and ended is not None else None


@cache
def address(name: str) -> str:
    """Where a static file is had; another one has another address."""
    digest = hashlib.sha256(_resource(name).encode()).hexdigest()[:12]
    return f"/static/{digest}.{name}"


@cache
def _resource(name: str) -> str:
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
    made.filters |= {
        "amount": words.amount,
        "span": words.span,
        "clock": words.clock,
        "plain": words.plain,
        "ago": words.ago,
    }
    made.globals["address"] = address
    return made


def _template(name: str) -> Any:
    return _environment().get_template(name)
