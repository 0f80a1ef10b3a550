"""Who may do what at the embedded registry: one token for all who push, an optional login for those who pull.

The token is the password of a basic login (any user name), or a bearer token itself, or what `/token` gives short-lived
tokens for, by the token flow of the distribution project: so that `docker login`, `podman login` and `skopeo login` work.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from flops.connections import address_of, is_own_page, let_in
from flops.oci.reference import is_loopback
from flops.registry.protocol import Refusal

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.types import ASGIApp, Receive, Scope, Send

    from flops.throttle import Throttle

#: Seconds that a short-lived token lasts; it is looked at when a request begins.
_LIFETIME = 600
_FORM_LIMIT = 64 * 1024
_READS = {"GET", "HEAD"}
_UPLOADS = "/blobs/uploads"
_SERVICE = "flops"
_SHORT_LIVED = re.compile(r"(?:push|pull)\.[0-9]{1,11}\.[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a registry asks of its clients."""

    token: str = ""
    """Who pushes or deletes must know it; empty: everybody may."""
    private: bool = False
    """Who pulls must know it too."""
    hosts: tuple[str, ...] = ()
    """Names under which it is reached, beside addresses and loopback names: no web page's own name may lead here."""


class TokenAccess:
    """ASGI middleware that lets through what the rules allow."""

    def __init__(self, app: ASGIApp, rules: Rules, throttle: Throttle) -> None:
        self._app = app
        self._rules = rules
        self._throttle = throttle
        self._key = hashlib.sha256(b"flops registry token\0" + rules.token.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            answer = await self._answer(request)
        except Refusal as refusal:
            answer = refusal.response()
        if answer is None:
            await self._app(scope, receive, send)
        else:
            await answer(scope, receive, send)

    async def _answer(self, request: Request) -> Response | None:
        """None: the request may pass."""
        if not _is_known_host(request.headers.get("host", ""), self._rules.hosts):
            raise Refusal(HTTPStatus.MISDIRECTED_REQUEST, "DENIED", "this registry is not reached by that name")
        if request.method not in _READS and not is_own_page(request.headers):
            raise Refusal(HTTPStatus.FORBIDDEN, "DENIED", "a page of another origin can't change anything here")
        if not self._rules.token:
            let_in(request.scope)
            return None
        if request.url.path == "/token":
            return await self._give_token(request)
        wanted = _wanted(request)
        granted = self._granted(request)
        # Clients learn from the API's root how to log in; without a login they get a token that may only read.
        if granted is None and (request.url.path.rstrip("/") == "/v2" or wanted == "push" or self._rules.private):
            raise self._unauthorized(request, wanted, "authentication is needed")
        if wanted == "push" and granted != "push":
            raise self._unauthorized(request, wanted, "this login may not push")
        if granted is not None:
            let_in(request.scope)
        return None

    def _granted(self, request: Request) -> str | None:
        """`push`, `pull`, or None for nobody."""
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        match scheme.lower():
            case "basic":
                return "push" if self._is_token(_password(value), request) else None
            case "bearer" if _SHORT_LIVED.fullmatch(value.strip()):  # one that has ended is no guess
                return self._read(value.strip())
            case "bearer":
                return "push" if self._is_token(value.strip(), request) else None
            case _:
                return None

    def _is_token(self, text: str, request: Request) -> bool:
        address = address_of(request.scope.get("client"))
        if seconds := self._throttle.wait(address, text):
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                "TOOMANYREQUESTS",
                "too many wrong passwords came from this address",
                headers={"Retry-After": str(seconds)},
            )
        right = hmac.compare_digest(text.encode(), self._rules.token.encode())
        if right:
            self._throttle.passed(address, text)
        else:
            self._throttle.failed(address)
        return right

    async def _give_token(self, request: Request) -> Response:
        granted = self._granted(request)
        tried = "authorization" in request.headers
        if request.method == "POST":  # OAuth 2: the password, or the token as what was kept by a former login
            form = parse_qs((await _body(request)).decode("utf-8", "replace"))
            secret = (form.get("password") or form.get("refresh_token") or [""])[0]
            granted, tried = "push" if self._is_token(secret, request) else None, True
        elif request.method != "GET":
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "UNSUPPORTED", "a token is asked for by GET or POST")
        if granted is None and not tried and not self._rules.private:
            granted = "pull"
        if granted is None:
            raise Refusal(HTTPStatus.UNAUTHORIZED, "UNAUTHORIZED", "the password is not this registry's token")
        token = self._sign(granted, int(time.time()) + _LIFETIME)
        fields = {"token": token, "access_token": token, "expires_in": _LIFETIME}
        return JSONResponse(fields, headers={"Cache-Control": "no-store"})

    def _sign(self, granted: str, ends: int) -> str:
        text = f"{granted}.{ends}"
        return f"{text}.{hmac.digest(self._key, text.encode(), 'sha256').hex()}"

    def _read(self, token: str) -> str | None:
        """What a short-lived token grants; None where it is none of ours, or has ended."""
        granted, ends, _ = token.split(".")
        genuine = hmac.compare_digest(token.encode(), self._sign(granted, int(ends)).encode())
        return granted if genuine and time.time() < int(ends) else None

    def _unauthorized(self, request: Request, wanted: str, message: str) -> Refusal:
        scheme = request.headers.get("x-forwarded-proto", request.url.scheme)
        realm = f"{'https' if scheme == 'https' else 'http'}://{request.headers['host']}/token"
        challenge = f'Bearer realm="{realm}",service="{_SERVICE}"'
        name = _repository(request.url.path)
        if name:
            challenge += f',scope="repository:{name}:{"pull,push" if wanted == "push" else "pull"}"'
        return Refusal(HTTPStatus.UNAUTHORIZED, "UNAUTHORIZED", message, headers={"WWW-Authenticate": challenge})


def _wanted(request: Request) -> str:
    """Reading an upload's status is a part of a push."""
    return "pull" if request.method in _READS and _UPLOADS not in request.url.path else "push"


def _repository(path: str) -> str:
    """The name in a path of the API; empty where there is none that could stand in a header."""
    for part in ("/blobs/", "/manifests/", "/tags/", "/referrers/"):
        name, found, _ = path.removeprefix("/v2/").rpartition(part)
        name = name.removesuffix("/blobs") if part == "/blobs/" else name
        if found and all(letter.isascii() and (letter.isalnum() or letter in "._-/") for letter in name):
            return name
    return ""


def _password(encoded: str) -> str:
    try:
        return base64.b64decode(encoded.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _FORM_LIMIT:
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "SIZE_INVALID", "no form has so many bytes")
    return bytes(body)


def _is_known_host(host: str, names: Collection[str]) -> bool:
    """A page that rebinds its own name to this machine sends that name; an address can't be rebound."""
    name = host.lower().rpartition("]")[0].strip("[") if host.startswith("[") else host.lower().partition(":")[0]
    if is_loopback(name) or name in names or host.lower() in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
