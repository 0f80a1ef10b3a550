"""How a failure is told over HTTP: its status, and the same object that commands and events show."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from flops import errors
from flops.errors import FlopsError, InternalError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The first that fits counts. 503 means: the same request may succeed in a moment.
_STATUS: tuple[tuple[type[FlopsError], HTTPStatus], ...] = (
    (errors.ProjectNotFound, HTTPStatus.NOT_FOUND),
    (errors.ProjectDecided, HTTPStatus.CONFLICT),
    (errors.KeyReused, HTTPStatus.CONFLICT),
    (errors.ImagesUnproven, HTTPStatus.CONFLICT),
    (errors.AttemptOver, HTTPStatus.GONE),
    (errors.LoginThrottled, HTTPStatus.TOO_MANY_REQUESTS),
    (errors.AccessDenied, HTTPStatus.UNAUTHORIZED),
    (errors.TooMany, HTTPStatus.TOO_MANY_REQUESTS),
    (errors.CredentialUnknown, HTTPStatus.UNPROCESSABLE_ENTITY),
    (errors.OrchestratorUnreachable, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.StoreError, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.DiskFull, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.Cancelled, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.UsageError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (errors.SourceError, HTTPStatus.UNPROCESSABLE_ENTITY),
)
#: Seconds after which asking again is worth it.
_RETRY = "5"


class Refused(Exception):
    """A request that HTTP itself has a status for, whatever the failure's own would be."""

    def __init__(self, status: HTTPStatus, error: FlopsError) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error


def status_of(error: FlopsError) -> HTTPStatus:
    return next((status for kind, status in _STATUS if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)


def failure(
    error: FlopsError, status: HTTPStatus | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The answer that tells a failure."""
    status = status or status_of(error)
    more = dict(headers or {})
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        more.setdefault("Retry-After", str(error.seconds) if isinstance(error, errors.LoginThrottled) else _RETRY)
    if status == HTTPStatus.UNAUTHORIZED:
        more.setdefault("WWW-Authenticate", 'Bearer realm="flops"')
    return JSONResponse({"error": error.to_json()}, status_code=status, headers=more)


def bug() -> JSONResponse:
    """What goes on inside is told in the log, never over the network."""
    return failure(
        InternalError("the manager failed at this request", hint="its log says more; please report it as a bug"),
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )
