"""Stands before every route: limits, the Host and Origin checks, the login, and the headers of every answer (ASGI)."""

from __future__ import annotations

import logging
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response

from flops.connections import let_in
from flops.errors import AccessDenied, FlopsError, UsageError
from flops.service.access import COOKIE, TOKEN_LIMIT
from flops.service.refusals import Refused, bug, failure
from flops_wire.manager import BODY_LIMIT, PROJECTS, SLA_LIMIT

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from flops.service.access import Access

_log = logging.getLogger("flops.http")
HEADERS_LIMIT = 32 * 1024
TARGET_LIMIT = 8 * 1024
_READS = frozenset({"GET", "HEAD"})
#: What may be had without a login: how the service is, and what the login page is made of.
_PUBLIC = ("/healthz", "/login", "/logout")
STATIC = "/static/"
_ATTEMPT_PARTS = 5
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # no-referrer would make browsers send `Origin: null` from our own forms
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """`Guard(app, access=...)`; whatever it lets through is from somebody who may."""

    def __init__(self, app: ASGIApp, *, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        if path.startswith("/api/") and path.endswith("/"):
            scope["path"] = path[:-1]
        answer = await self._refusal(scope)
        marked = _Marked(send)
        if answer is None:
            if not self._is_open(scope["path"]):
                let_in(scope)
            answer = await self._pass_on(scope, _limited(scope, receive), marked)
        if answer is not None:
            await answer(scope, receive, marked)

    async def _pass_on(self, scope: Scope, receive: Receive, send: _Marked) -> Response | None:
        """None where the application has answered itself."""
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            _log.error("%s %s failed", scope["method"], scope["path"][:200], exc_info=error)
            if send.started:
                raise
            return bug()
        return None

    async def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        reads = scope["method"] in _READS
        refused = _oversized(scope, headers) or self._misdirected(headers)
        if refused is None and not reads:
            refused = self._foreign(headers)
        if refused is not None or not self._needs_login(scope["path"], headers):
            return refused
        try:
            await self._log_in(headers, scope.get("client"))
        except FlopsError as error:
            if reads and "text/html" in headers.get("accept", ""):
                return RedirectResponse(f"/login?next={quote(scope['path'])}", HTTPStatus.SEE_OTHER)
            return failure(error)
        return None

    def _foreign(self, headers: Headers) -> Response | None:
        try:
            self._access.check_origin(headers, by_cookie=bool(session_of(headers)) and not bearer(headers))
        except AccessDenied as error:
            return failure(error, HTTPStatus.FORBIDDEN)
        return None

    @staticmethod
    def _is_open(path: str) -> bool:
        """For everybody, or judged where it is answered."""
        return path in _PUBLIC or path.startswith(STATIC) or _of_attempt(path)

    def _needs_login(self, path: str, headers: Headers) -> bool:
        if not self._access.gate.wants_token or self._is_open(path):
            return False
        return bool(bearer(headers)) or not self._access.sessions.valid(session_of(headers))

    async def _log_in(self, headers: Headers, client: tuple[str, int] | None) -> None:
        token = bearer(headers)
        if not token:
            raise AccessDenied("this needs a login", hint="send the token: Authorization: Bearer TOKEN")
        await self._access.log_in(token, client)

    def _misdirected(self, headers: Headers) -> Response | None:
        names = headers.getlist("host")
        if len(names) != 1:
            return failure(UsageError("the request does not name one host (RFC 9112, 3.2)"), HTTPStatus.BAD_REQUEST)
        if not self._access.knows_host(names[0]):
            return failure(
                AccessDenied(
                    f"the manager is not called {names[0][:253]!r}",
                    hint="use its own address; other names are told to it by FLOPS_ADVERTISE and FLOPS_NAMES",
                ),
                HTTPStatus.MISDIRECTED_REQUEST,
            )
        return None


def _oversized(scope: Scope, headers: Headers) -> Response | None:
    if sum(len(key) + len(value) for key, value in headers.raw) > HEADERS_LIMIT:
        return failure(
            UsageError(f"the request's headers have more than {HEADERS_LIMIT} bytes"),
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        )
    if len(scope["path"]) + len(scope["query_string"]) > TARGET_LIMIT:
        return failure(
            UsageError(f"the request's address has more than {TARGET_LIMIT} bytes"), HTTPStatus.REQUEST_URI_TOO_LONG
        )
    limit = _body_limit(scope["path"])
    length = headers.get("content-length", "")
    return failure(_too_large(limit), HTTPStatus.REQUEST_ENTITY_TOO_LARGE) if _above(length, limit) else None


def _above(length: str, limit: int) -> bool:
    return length.isascii() and length.isdigit() and (len(length) > len(str(limit)) or int(length) > limit)


def _too_large(limit: int) -> UsageError:
    return UsageError(f"the request's body has more than {limit} bytes", hint="send less at once")


def _body_limit(path: str) -> int:
    return BODY_LIMIT if _of_attempt(path) else SLA_LIMIT  # what else is sent is smaller


def _limited(scope: Scope, receive: Receive) -> Receive:
    """Count what comes while it comes: a chunked body tells no length."""
    limit = _body_limit(scope["path"])
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _too_large(limit))
        return message

    return counted


class _Marked:
    """Sends an answer with the headers that every answer has."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
        await self._send(message)


def _of_attempt(path: str) -> bool:
    """`ID/attempts/N/job` and `.../events`: the manager itself checks the attempt's token there, and no other opens it."""
    parts = path.removeprefix(PROJECTS).split("/")
    return (
        path.startswith(PROJECTS + "/")
        and len(parts) == _ATTEMPT_PARTS
        and parts[2] == "attempts"
        and parts[4] in ("job", "events")
    )


def bearer(headers: Headers) -> str:
    """The token of an Authorization header (RFC 6750); empty where there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and len(token) <= TOKEN_LIMIT else ""


def session_of(headers: Headers) -> str:
    """The page's cookie; empty where there is none."""
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return cookie.value if cookie is not None else ""
