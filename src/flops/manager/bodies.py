"""A request's JSON, read once and strictly: what a database or an answer could not hold is refused here."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NoReturn

from flops.errors import UsageError
from flops.manager.answers import Refused

if TYPE_CHECKING:
    from starlette.requests import Request

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
