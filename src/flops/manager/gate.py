"""Who may call the manager: everybody on this machine, who knows the token, or whom Oakestra knows."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

import httpx

from flops import http
from flops.errors import AccessDenied, OrchestratorUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Characters of a bearer token; JSON web tokens have some hundred.
TOKEN_LIMIT = 4096
#: Seconds that Oakestra's yes is believed, and its no (somebody may log in anew).
_BELIEVED, _DENIED = 60.0, 5.0
_REMEMBERED = 1000
_PATIENCE = 10.0
#: Seconds of a page's session: of a token that doesn't end, and the most of one of Oakestra's, whose own end in ten minutes.
_SESSION, _OAKESTRA_SESSION = 12 * 3600.0, 600.0


class Gate(Protocol):
    """Judges bearer tokens."""

    wants_token: bool
    """False where everybody who reaches the manager may call it."""

    async def admit(self, token: str) -> None:
        """AccessDenied for a token that is none; OrchestratorUnreachable where nobody can tell."""

    def session_seconds(self, token: str) -> float:
        """How long a page that logged in with this token may stay."""

    def secret(self) -> bytes:
        """What sessions are signed with; another one makes all of them void."""


class OpenGate:
    """Loopback only: whoever is on this machine may."""

    wants_token = False

    async def admit(self, token: str) -> None:
        """A token is sent by clients that have one; nothing depends on it."""

    def session_seconds(self, token: str) -> float:  # noqa: ARG002
        return _SESSION

    def secret(self) -> bytes:
        return b""


class TokenGate:
    """One token that the operator chose (FLOPS_API_TOKEN)."""

    wants_token = True

    def __init__(self, token: str) -> None:
        self._hash = _hash(token)
        self._secret = hmac.digest(token.encode(), b"flops page session", "sha256")

    async def admit(self, token: str) -> None:
        if not hmac.compare_digest(_hash(token), self._hash):
            raise AccessDenied("the token is not the manager's", hint="send FLOPS_API_TOKEN of the manager as bearer")

    def session_seconds(self, token: str) -> float:  # noqa: ARG002
        return _SESSION

    def secret(self) -> bytes:
        return self._secret


class OakestraGate:
    """Oakestra's own tokens: the caller's is tried on a call that only reads, and the answer believed for a minute."""

    wants_token = True

    def __init__(
        self,
        url: str,
        *,
        secret: bytes,
        ca_bundle: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url.rstrip("/") + "/api/applications/"
        self._secret = secret
        self._ca_bundle = ca_bundle
        self._transport = transport
        self._clock = clock
        self._known: dict[bytes, tuple[float, bool]] = {}
        self._asking: dict[bytes, asyncio.Task[bool]] = {}

    async def admit(self, token: str) -> None:
        key = _hash(token)
        until, known = self._known.get(key, (0.0, False))
        if self._clock() >= until:
            task = self._asking.get(key)
            if task is None:  # callers with the same token wait for one question
                task = self._asking[key] = asyncio.create_task(self._ask(token))
                task.add_done_callback(lambda _done: self._asking.pop(key, None))
            known = await asyncio.shield(task)
            self._remember(key, known=known)
        if not known:
            raise AccessDenied(
                "Oakestra does not know this token", hint="log in to Oakestra again; its tokens end soon"
            )

    def session_seconds(self, token: str) -> float:
        """Not beyond the token's own end (RFC 7519, `exp`), where it tells it."""
        try:
            part = token.split(".")[1]
            until = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))["exp"]
            return max(0.0, min(_OAKESTRA_SESSION, float(until) - time.time()))
        except (IndexError, KeyError, TypeError, ValueError, binascii.Error, RecursionError):
            return _OAKESTRA_SESSION

    def secret(self) -> bytes:
        return self._secret

    async def _ask(self, token: str) -> bool:
        try:
            async with (
                http.async_client(
                    self._ca_bundle, transport=self._transport, seconds=_PATIENCE, trust_env=False
                ) as client,
                client.stream("GET", self._url, headers={"Authorization": f"Bearer {token}"}) as answer,
            ):
                status = answer.status_code
        except (httpx.HTTPError, OSError) as error:
            why, hint = http.reason(error)
            raise OrchestratorUnreachable(
                f"Oakestra does not answer, so nobody can tell whose token this is: {why}",
                hint=hint or "try again in a moment",
            ) from error
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise OrchestratorUnreachable(f"Oakestra answered with {status}", hint="try again in a moment")
        return status == HTTPStatus.OK

    def _remember(self, key: bytes, *, known: bool) -> None:
        if len(self._known) >= _REMEMBERED:
            now = self._clock()
            self._known = {key: value for key, value in self._known.items() if value[0] > now}
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
        self._known[key] = (self._clock() + (_BELIEVED if known else _DENIED), known)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
