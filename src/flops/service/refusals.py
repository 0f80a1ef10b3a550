"""How a failure is told over HTTP: its status, and the same object that commands and events show."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NoReturn

from starlette.responses import JSONResponse

from flops import errors
from flops.errors import FlopsError, InternalError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request


#: The first that fits counts. 503 means: the same request may succeed in a moment.
_STATUS: tuple[tuple[type[FlopsError], HTTPStatus], ...] = (
    (errors.ProjectNotFound, HTTPStatus.NOT_FOUND),
    (errors.ProjectDecided, HTTPStatus.CONFLICT),
    (errors.KeyReused, HTTPStatus.CONFLICT),
    (errors.ImagesUnproven, HTTPStatus.CONFLICT),
    (errors.AttemptOver, HTTPStatus.GONE),
    (errors.LoginThrottled, HTTPStatus.TOO_MANY_REQUESTS),
    (errors.AccessDenied, HTTPStatus.UNAUTHORIZED),
    (errors.AttemptLimit, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
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


#: What a browser's form can send without asking first; nothing of ours is sent so.
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")


async def raw_body(request: Request) -> bytes:
    """The body's bytes. Programs that send JSON without saying so are believed."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _FORMS:
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            UsageError(f"the body is {kind}, not JSON", hint="send Content-Type: application/json"),
        )
    return await request.body()


def parse_body(data: bytes) -> Any:
    """Refused (400) for what is no JSON, and for numbers and texts that no JSON document may hold."""
    try:
        document = json.loads(data.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
        if b"\\u" in data:  # half a surrogate pair is valid JSON and no text
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise _unreadable("the body is not text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise _unreadable(f"the body is not JSON (line {error.lineno}, column {error.colno})") from None
    except (ValueError, RecursionError):
        raise _unreadable("the body is not JSON") from None
    return document


def _finite(text: str) -> float:
    """1e999 is infinite here, which no answer could hold."""
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _unreadable(message: str) -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, UsageError(message, hint="send one JSON document (RFC 8259) in UTF-8"))
