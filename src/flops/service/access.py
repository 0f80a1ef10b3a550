"""Which requests the manager listens to: by which name it is called, from which page a request comes, who sends it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import socket
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import httpx

from flops import http
from flops.connections import address_of, is_own_page
from flops.errors import AccessDenied, BadSetting, LoginThrottled, OrchestratorUnreachable
from flops.oci.reference import is_loopback
from flops.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from starlette.datastructures import Headers

    from flops.settings import Settings


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


COOKIE = "flops_session"
_PARTS = 3


@dataclass(frozen=True, kw_only=True)
class Sessions:
    """Makes and judges cookies. Their key comes from the token: another token ends every session."""

    secret: bytes = field(repr=False)
    secure: bool = False
    """Pages come by https: the cookie travels by nothing else."""
    clock: Callable[[], float] = time.time
    ended: dict[str, float] = field(default_factory=dict, repr=False)
    """Logged out, by their numbers, and when they would have ended by themselves."""

    def make(self, seconds: float) -> str:
        """A session of this length."""
        payload = f"{int(self.clock() + seconds)}.{secrets.token_urlsafe(12)}"
        return f"{payload}.{self._sign(payload)}"

    def valid(self, value: str) -> bool:
        parts = value.split(".")
        if len(parts) != _PARTS or not self.secret or not value.isascii():
            return False
        signed = hmac.compare_digest(self._sign(".".join(parts[:2])), parts[2])
        return signed and parts[0].isdigit() and int(parts[0]) > self.clock() and parts[1] not in self.ended

    def end(self, value: str) -> tuple[str, float] | None:
        """From now on this session is none: its number and its own end, to be remembered; None where it was none before."""
        if not self.valid(value):
            return None
        until, number, _ = value.split(".")
        for old in [one for one, ends in self.ended.items() if ends <= self.clock()]:
            del self.ended[old]
        self.ended[number] = float(until)
        return number, float(until)

    def cookie(self, value: str, seconds: float) -> str:
        """The Set-Cookie header; an empty value ends the session."""
        age = int(seconds) if value else 0
        return f"{COOKIE}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict" + (
            "; Secure" if self.secure else ""
        )

    def _sign(self, payload: str) -> str:
        return base64.urlsafe_b64encode(hmac.digest(self.secret, payload.encode(), "sha256")).decode().rstrip("=")


_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>\d{1,5}))?")


@dataclass(frozen=True, kw_only=True)
class Access:
    """The answer to all three questions; no I/O but for what its gate asks."""

    gate: Gate
    sessions: Sessions
    names: frozenset[str]
    """Host names, without a port, that the manager is called by; others are DNS rebinding."""
    addresses: bool = False
    """It listens beyond loopback, so any address of this machine may be called (an address can't be rebound)."""
    throttle: Throttle = field(default_factory=lambda: Throttle("the manager"))
    origin: str | None = None
    """FLOPS_ADVERTISE's: where a proxy rewrites Host, pages still come from there."""

    @classmethod
    def of(cls, settings: Settings, host: str) -> Access:
        """For a manager that listens on `host`; BadSetting where it would be open to others than this machine."""
        gate = _gate(settings, host)
        advertised = urlsplit(settings.advertise) if settings.advertise else None
        if advertised is not None and (advertised.scheme not in ("http", "https") or not advertised.hostname):
            raise BadSetting("FLOPS_ADVERTISE is no address", hint="write http://HOST:5072 or https://HOST")
        names = set(_LOOPBACK) | {host.lower()}
        beyond = not is_loopback(host)
        if beyond:
            names |= {socket.gethostname().lower()}
        names |= {name.strip().lower() for name in settings.names.split(",") if name.strip()}
        if advertised is not None and advertised.hostname:
            names.add(advertised.hostname)
        secure = advertised is not None and advertised.scheme == "https"
        return cls(
            gate=gate,
            sessions=Sessions(secret=gate.secret(), secure=secure),
            names=frozenset(names),
            addresses=beyond,
            origin=f"{advertised.scheme}://{advertised.netloc}".lower() if advertised is not None else None,
        )

    async def log_in(self, token: str, client: tuple[str, int] | None) -> None:
        """AccessDenied, LoginThrottled; OrchestratorUnreachable where nobody can tell."""
        address = address_of(client)
        if seconds := self.throttle.wait(address, token):
            throttled = LoginThrottled("too many wrong tokens came from this address", hint=f"try again in {seconds} s")
            throttled.seconds = seconds
            raise throttled
        try:
            await self.gate.admit(token)
        except AccessDenied:
            self.throttle.failed(address)
            raise
        self.throttle.passed(address, token)

    def knows_host(self, header: str) -> bool:
        """Whether a Host header (RFC 9110, 7.2) names this manager."""
        match = _HOST.fullmatch(header)
        if match is None:
            return False
        name = match["name"].strip("[]").lower().rstrip(".")
        return name in self.names or (self.addresses and _is_address(name))

    def check_origin(self, headers: Headers, *, by_cookie: bool) -> None:
        """AccessDenied for a request that would change something and comes from a page that is not ours.

        A browser sends one of the two headers at least, so a cookie without both is refused too.
        """
        if not is_own_page(headers, *((self.origin,) if self.origin else ())):
            raise AccessDenied("a page of another origin can't change anything here", hint="use the manager's own page")
        if by_cookie and "origin" not in headers and "sec-fetch-site" not in headers:
            raise AccessDenied(
                "a session's request does not say which page it comes from", hint="programs send the token as bearer"
            )


def _gate(settings: Settings, host: str) -> Gate:
    match settings.auth:
        case "token":
            token = settings.api_token.get_secret_value() if settings.api_token else ""
            if not re.fullmatch(r"[\x21-\x7e]{1,4096}", token):
                raise BadSetting(
                    "FLOPS_AUTH is token, and FLOPS_API_TOKEN holds none (printable characters without spaces)",
                    hint="set it, for example to the output of: openssl rand -hex 32",
                )
            return TokenGate(token)
        case "oakestra":
            if not settings.oakestra_url:
                raise BadSetting("FLOPS_AUTH is oakestra, and FLOPS_OAKESTRA_URL is not set", hint="http://HOST:10000")
            return OakestraGate(settings.oakestra_url, secret=secrets.token_bytes(32), ca_bundle=settings.ca_bundle)
    if not is_loopback(host):
        raise BadSetting(
            f"without FLOPS_AUTH the manager listens on loopback only, not on {host}",
            hint="set FLOPS_AUTH=token and FLOPS_API_TOKEN, or FLOPS_AUTH=oakestra",
        )
    return OpenGate()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
