"""The manager over HTTP: the routes of four files behind one guard, and one way to tell failures (docs/http.md, "HTTP")."""

from __future__ import annotations

import logging
import re
import time
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from flops.errors import Finding, FlopsError, UsageError
from flops.service.guard import Guard
from flops.service.health import Health
from flops.service.login import LoginPages, ServiceRoutes
from flops.service.metrics import Metrics
from flops.service.refusals import Refused, bug, failure, status_of
from flops.service.routes import AttemptRoutes, ProjectRoutes
from flops.service.streams import Streams
from flops.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from starlette.requests import Request
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from flops.service.access import Access
    from flops.service.operations import Manager

_log = logging.getLogger("flops.http")
_DESCRIPTION = (
    "From an ML Git repository to federated-learning images for every platform. "
    "Failures are told as {error: {code, message, hint, findings}}; programs go by the code."
)


def create_app(
    manager: Manager,
    access: Access,
    *,
    checks: Mapping[str, Callable[[], object]] | None = None,
    pages: Sequence[BaseRoute] = (),
    streams: Streams | None = None,
) -> FastAPI:
    """The manager as an ASGI application; it neither starts nor ends the manager.

    `checks` are what /healthz asks (by name; FlopsError where a part is not well), `pages` further routes (the observer's),
    behind the same guard; what they load stands below /static/. `app.state.streams.close()` ends the event streams.
    """
    streams = streams or Streams(manager)
    metrics = Metrics(manager, streams)
    manager.bus.listen(metrics.heard)
    access.throttle.on_failure = partial(manager.tallies.add, "logins_failed")
    app = FastAPI(
        title="FLOps image builder",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers=_HANDLERS,
    )
    app.state.streams = streams
    app.state.metrics = metrics
    locked = access.gate.wants_token
    for routes in (
        ProjectRoutes(manager, streams, locked=locked),
        AttemptRoutes(manager),
        ServiceRoutes(Health(checks or {}), metrics, locked=locked),
    ):
        routes.add_to(app)
    app.router.routes.extend([*LoginPages(access, manager).routes(), *pages])
    app.add_middleware(Guard, access=access)
    app.add_middleware(_Measured, metrics=metrics)
    return app


class _Measured:
    """Counts and times every request by its route, never by what stands in its path; slow and failed ones are logged."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()

        async def measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                seconds = time.perf_counter() - begun
                route, status = getattr(scope.get("route"), "path", ""), message["status"]
                method = scope["method"] if route else "other"
                self._metrics.answered(method, route or "none", status, seconds)
                level = logging.ERROR if status >= HTTPStatus.INTERNAL_SERVER_ERROR else logging.DEBUG
                _log.log(level, "%s %s: %d after %.3f s", scope["method"], scope["path"][:200], status, seconds)
            await send(message)

        await self._app(scope, receive, measured)


async def _failed(_request: Request, error: Exception) -> Response:
    if not isinstance(error, FlopsError):
        return bug()
    if status_of(error) == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("%s: %s", error.code, error.message, exc_info=error)
    return failure(error)


async def _refused(_request: Request, error: Exception) -> Response:
    return failure(error.error, error.status) if isinstance(error, Refused) else bug()


async def _unprocessable(_request: Request, error: Exception) -> Response:
    """What FastAPI found in path, query and headers, in our shape and without the values themselves."""
    wrong = error.errors() if isinstance(error, RequestValidationError) else ()
    findings = tuple(
        Finding(path="/" + "/".join(map(str, one["loc"])), line=0, code=UsageError.code, message=str(one["msg"]))
        for one in wrong
    )
    told = "; ".join(f"{finding.path}: {finding.message}" for finding in findings)
    return failure(UsageError(f"the request can't be read: {told}", hint="see /docs", findings=findings))


async def _http(request: Request, error: Exception) -> Response:
    """Unknown paths (404) and methods (405)."""
    if not isinstance(error, HTTPException):
        return bug()
    status = HTTPStatus(error.status_code)
    headers = dict(error.headers or {})
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_allowed(request))
    return failure(UsageError(f"{status.phrase.lower()}: {_shown(request)}", hint="see /docs"), status, headers)


async def _gone(_request: Request, _error: Exception) -> Response:
    """The client went away in the middle of a body: nobody reads this answer."""
    return Response(status_code=HTTPStatus.BAD_REQUEST)


def _allowed(request: Request) -> list[str]:
    """The methods of all routes of a path (RFC 9110, 15.5.6)."""
    found: set[str] = set()
    for route in request.app.router.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return sorted(found)


def _shown(request: Request) -> str:
    path = re.sub(r"[^\x21-\x7e]", "?", request.url.path)
    return f"{request.method[:20]} {path[:100]}"


_HANDLERS: dict[int | type[Exception], Callable[[Request, Exception], Coroutine[Any, Any, Response]]] = {
    FlopsError: _failed,
    Refused: _refused,
    RequestValidationError: _unprocessable,
    HTTPException: _http,
    ClientDisconnect: _gone,
}
