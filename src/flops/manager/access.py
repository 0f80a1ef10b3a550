"""Which requests the manager listens to: by which name it is called, from which page a request comes, who sends it."""

from __future__ import annotations

import ipaddress
import re
import secrets
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from flops.connections import address_of
from flops.errors import AccessDenied, BadSetting, LoginThrottled
from flops.manager.gate import Gate, OakestraGate, OpenGate, TokenGate
from flops.manager.session import Sessions
from flops.oci.reference import is_loopback
from flops.oci.registry_access import is_own_page
from flops.throttle import Throttle

if TYPE_CHECKING:
    from starlette.datastructures import Headers

    from flops.settings import Settings

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
            raise LoginThrottled(seconds)
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
