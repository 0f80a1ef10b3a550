"""The page's login: a token once, then a cookie (`flops.service.access`)."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from fastapi.responses import JSONResponse
from jinja2 import Environment, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request  # noqa: TC002 - FastAPI reads annotations when it runs
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from flops.errors import AccessDenied, FlopsError, LoginThrottled
from flops.service import documents
from flops.service.access import TOKEN_LIMIT, OakestraGate
from flops.service.guard import session_of
from flops.service.openapi import TOKEN, add_route, answers, example, lock
from flops.service.refusals import status_of
from flops.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fastapi import FastAPI
    from jinja2 import Template

    from flops.service.access import Access
    from flops.service.health import Health
    from flops.service.metrics import Metrics
    from flops.service.operations import Manager


_METHODS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One of the OpenAPI document, as the page shows it."""

    id: str
    method: str
    path: str
    summary: str
    description: tuple[str, ...]
    """Paragraphs."""
    parameters: tuple[dict[str, str], ...]
    body: str
    """An example of it; empty where there is none."""
    answers: tuple[dict[str, str], ...]
    example: str
    """Of the first answer that tells success."""


def login_page(*, told: str = "", label: str, target: str) -> str:
    """The form; `told` says why an earlier one was refused, `target` where it leads."""
    return _template("login.html").render(told=told, label=label, next=target)


def docs_page(document: Mapping[str, Any]) -> str:
    """The operations of an OpenAPI document, for people."""
    info = document["info"]
    return _template("docs.html").render(
        title=info["title"],
        version=info["version"],
        description=info.get("description", ""),
        operations=list(_operations(document)),
    )


@cache
def stylesheet() -> str:
    return _resource("manager.css")


def _operations(document: Mapping[str, Any]) -> Iterator[Operation]:
    for path, entry in document["paths"].items():
        for method in _METHODS:
            if method not in entry:
                continue
            told = entry[method]
            body = told.get("requestBody", {}).get("content", {})
            answers = told["responses"]
            yield Operation(
                id=told["operationId"],
                method=method.upper(),
                path=path,
                summary=told.get("summary", ""),
                description=tuple(part for part in told.get("description", "").split("\n\n") if part),
                parameters=tuple(
                    {"name": one["name"], "place": one["in"], "description": one.get("description", "")}
                    for one in told.get("parameters", ())
                ),
                body=_example(body),
                answers=tuple(
                    {"status": status, "description": answer.get("description", "")}
                    for status, answer in sorted(answers.items())
                ),
                example=_example(answers.get("200", {}).get("content", {})),
            )


def _example(content: Mapping[str, Any]) -> str:
    for kind, entry in content.items():
        example = entry.get("example")
        if example is None:
            example = next((one["value"] for one in entry.get("examples", {}).values()), None)
        if example is not None:
            return json.dumps(example, indent=2) if kind.endswith("json") else str(example)
    return ""


@cache
def _template(name: str) -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(_resource(name))


def _resource(name: str) -> str:
    return (resources.files("flops") / "resources" / "manager" / name).read_text(encoding="utf-8")


_log = logging.getLogger("flops.http")
HOME = "/projects"
#: A path on this host; `//HOST` and `/\HOST` are none.
_TARGET = re.compile(r"/(?![/\\])[\x21-\x7e]{0,500}")


class LoginPages:
    """GET and POST /login, POST /logout, and what they are styled with."""

    def __init__(self, access: Access, manager: Manager) -> None:
        self._access = access
        self._manager = manager
        access.sessions.ended.update(manager.ended_sessions())

    def routes(self) -> list[Route]:
        return [
            Route("/login", self.form, methods=["GET"]),
            Route("/login", self.enter, methods=["POST"]),
            Route("/logout", self.leave, methods=["POST"]),
            Route("/static/manager.css", self.style, methods=["GET"]),
        ]

    async def form(self, request: Request) -> Response:
        target = _target(request.query_params.get("next", ""))
        if not self._access.gate.wants_token:
            return RedirectResponse(target, HTTPStatus.SEE_OTHER)
        return self._page(target)

    async def enter(self, request: Request) -> Response:
        """A form as browsers send it; what it holds is kept nowhere."""
        try:
            fields = parse_qs((await request.body()).decode("latin-1"), max_num_fields=10)
        except ValueError:  # more fields than a form of ours has
            fields = {}
        token = fields.get("token", [""])[0].strip()
        target = _target(fields.get("next", [""])[0])
        gate, sessions = self._access.gate, self._access.sessions
        if not gate.wants_token:
            return RedirectResponse(target, HTTPStatus.SEE_OTHER)
        try:
            if not token or len(token) > TOKEN_LIMIT:
                raise AccessDenied("there is no token")
            await self._access.log_in(token, request.scope.get("client"))
        except FlopsError as error:
            told = f"{error.message}; {error.hint}" if isinstance(error, LoginThrottled) else error.message
            page = self._page(target, told=told, status=status_of(error))
            if isinstance(error, LoginThrottled):
                page.headers["Retry-After"] = str(error.seconds)
            return page
        seconds = gate.session_seconds(token)
        return RedirectResponse(
            target,
            HTTPStatus.SEE_OTHER,
            headers={"Set-Cookie": sessions.cookie(sessions.make(seconds), seconds)},
        )

    async def leave(self, request: Request) -> Response:
        """The session ends here too: a copy of its cookie opens nothing any more."""
        sessions = self._access.sessions
        ended = sessions.end(session_of(request.headers))
        if ended is not None:
            try:
                await run_in_threadpool(self._manager.end_session, *ended)
            except FlopsError as error:
                _log.warning("a logout is forgotten at the next start: %s", error)
        return RedirectResponse("/login", HTTPStatus.SEE_OTHER, headers={"Set-Cookie": sessions.cookie("", 0)})

    async def style(self, _request: Request) -> Response:
        return Response(stylesheet(), media_type="text/css", headers={"Cache-Control": "max-age=3600"})

    def _page(self, target: str, *, told: str = "", status: HTTPStatus = HTTPStatus.OK) -> Response:
        label = "Your Oakestra token" if isinstance(self._access.gate, OakestraGate) else "The manager's token"
        return HTMLResponse(login_page(told=told, label=label, target=target), status)


def _target(text: str) -> str:
    return text if _TARGET.fullmatch(text) else HOME


class ServiceRoutes:
    def __init__(self, health: Health, metrics: Metrics, *, locked: bool) -> None:
        self._lock = lock("operator", TOKEN) if locked else []
        self._health = health
        self._metrics = metrics

    def add_to(self, app: FastAPI) -> None:
        add_route(app, "/healthz", self.healthz, "GET", tag="service", responses=_HEALTH)
        add_route(
            app,
            "/metrics",
            self.metrics,
            "GET",
            tag="service",
            responses=_METRICS,
            dependencies=self._lock,
            response_class=Response,
        )
        app.add_api_route("/healthz", self.healthz, methods=["HEAD"], include_in_schema=False, response_model=None)
        app.add_api_route("/docs", self.docs, include_in_schema=False, response_class=HTMLResponse)
        app.add_api_route("/", self.home, include_in_schema=False, response_class=RedirectResponse)

    def healthz(self) -> Response:
        """Whether database, reconciler and registry are well; for probes, without a login."""
        checks = self._health.look()
        well = all(told == "ok" for told in checks.values())
        document: dict[str, Any] = {
            "status": "ok" if well else "failing",
            "checks": checks,
            "version": __version__,
        }
        return JSONResponse(document, HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE)

    def metrics(self) -> Response:
        """For Prometheus, in its text format."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def docs(self, request: Request) -> Response:
        """The operations, for people."""
        return HTMLResponse(docs_page(request.app.openapi()))

    def home(self) -> Response:
        return RedirectResponse(HOME, HTTPStatus.SEE_OTHER)


_HEALTH = answers(
    documents.HealthDocument,
    "Everything is well.",
    {"status": "ok", "checks": {"database": "ok", "reconciler": "ok", "registry": "ok"}, "version": __version__},
) | {503: {"model": documents.HealthDocument, "description": "Something is not; `checks` says what."}}
_METRICS = example("text/plain", "The metrics.")
