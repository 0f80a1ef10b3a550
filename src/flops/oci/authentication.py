"""How a client proves who it is: basic (RFC 7617) and the token flow of the distribution project, as an httpx.Auth."""

from __future__ import annotations

import ipaddress
import json
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from flops.addresses import PinnedHosts, find_proxy, is_public
from flops.errors import AuthRealm, RegistryAuth, RegistryRefused, RegistryUnreachable
from flops.http import Transient, is_transient, retry_after
from flops.oci import responses
from flops.oci.reference import is_loopback

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable, Mapping

    from flops.oci.credentials import Credential, Credentials
    from flops.oci.reference import Registry


#: Addresses of one host that are tried, one after the other.
_TRIED = 4
#: A parent domain of fewer labels is a public suffix (`io`), which tells nothing about who owns a host.
_OWNED = 2


def check_realm(
    registry: Registry, realm: httpx.URL, allowed: Collection[str] = (), hosts: PinnedHosts | None = None
) -> None:
    """AuthRealm where no credential of this registry may be sent to a token realm.

    It may to the registry's own host, on any port; to a host under the domain that holds the registry's (as
    auth.example.org for registry.example.org), by https; to the hosts that settings allow. Never to a private address
    for a registry that is not private itself, and by http only for a registry that is spoken to by http.
    """
    host = realm.host
    own = host == registry.hostname or (is_loopback(host) and registry.loopback)
    if realm.scheme != "https" and not (realm.scheme == "http" and registry.plain_http and (own or host in allowed)):
        problem = f"not by https ({realm.scheme or 'no scheme'})"
    elif own or host in allowed:
        return
    elif not _same_domain(registry.url.partition("://")[2].partition(":")[0], host):
        problem = "another host"
    elif is_private(host, hosts) and not is_private(registry.hostname, hosts):
        problem = "at a private address"
    else:
        return
    raise AuthRealm(
        f"the registry {registry.host} sends its clients to {host[:253]} for a token, which is {problem}",
        hint="no credential was sent; where that host is right, the registry's operator must say so in its settings",
    )


def check_location(registry: Registry, url: httpx.URL, hosts: PinnedHosts | None = None) -> httpx.URL:
    """The address that a Location or redirect may be followed to; RegistryRefused where it may not.

    The registry's own host is always spoken to as the reference says (registries behind a proxy write http). Another
    host (a registry's blob storage) is never given a credential; it must be public where the registry is.
    """
    if url.host == registry.hostname and url.scheme == "http" and not registry.plain_http:
        _, _, port = registry.host.rpartition("]")[2].partition(":")
        return url.copy_with(scheme="https", port=int(port) if port else None)
    if url.scheme not in ({"http", "https"} if registry.plain_http else {"https"}):
        problem = f"which is not reached by https ({url.scheme or 'no scheme'})"
    elif url.host != registry.hostname and is_private(url.host, hosts) and not is_private(registry.hostname, hosts):
        problem = "which is at a private address"
    else:
        return url
    raise RegistryRefused(f"the registry {registry.host} sends its clients to {url.host[:253]}, {problem}")


def is_private(host: str, hosts: PinnedHosts | None = None) -> bool:
    """Whether a name or address is not on the public internet; a name that can't be resolved counts as public.

    It then can't be connected to either, unless by a proxy, which decides itself.
    """
    if is_loopback(host):
        return True
    try:
        found = (hosts or PinnedHosts()).find(host)
    except OSError:
        return False
    return not all(is_public(ipaddress.ip_address(one)) for one in found)


class PinnedTransport(httpx.BaseTransport):
    """Connects to judged addresses alone, and speaks there as to the host that was asked for (Host, SNI, certificate).

    Each host has connections of its own: two names at one address never share one. A proxy of the environment is used
    as ever, for hosts that pass the judgement or can't be resolved here. `options` are those of httpx.HTTPTransport.
    """

    def __init__(self, hosts: PinnedHosts, **options: Any) -> None:
        self._hosts = hosts
        self._options = options
        self._transports: dict[tuple[str, str | None], httpx.HTTPTransport] = {}
        self._guard = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """BlockedAddress before anything is sent; httpx's own errors otherwise."""
        host = request.url.raw_host.decode("ascii")
        proxy = None if is_loopback(host) else find_proxy(request.url.scheme, host)
        try:
            addresses = self._hosts.judge(host)
        except OSError as error:
            if proxy is None:
                raise httpx.ConnectError(f"{host} was not found: {error.strerror or error}") from error
            addresses = ()
        transport = self._transport(host, proxy)
        if proxy is not None:
            return transport.handle_request(request)
        failure: Exception = httpx.ConnectError(f"{host} has no address")
        for address in addresses[:_TRIED]:
            pinned = httpx.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host},
            )
            try:
                return transport.handle_request(pinned)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
        raise failure

    def close(self) -> None:
        for transport in self._transports.values():
            transport.close()

    def _transport(self, host: str, proxy: str | None) -> httpx.HTTPTransport:
        with self._guard:
            if (host, proxy) not in self._transports:
                self._transports[host, proxy] = httpx.HTTPTransport(proxy=proxy, **self._options)
            return self._transports[host, proxy]


def _same_domain(registry: str, host: str) -> bool:
    parent = registry.partition(".")[2]
    return (
        parent.count(".") + 1 >= _OWNED and not parent.replace(".", "").isdigit() and f".{host}".endswith(f".{parent}")
    )


#: The request extension that holds what a request wants to do: a tuple of `repository:NAME:pull,push`.
SCOPE = "flops.scope"
_UNAUTHORIZED = 401
#: Seconds that a token lives where its server does not say, and how long before its end it is renewed.
_LIFETIME, _MARGIN = 60.0, 5.0
_HEADER_LIMIT = 8192
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"  # noqa: S105 - a grammar
_PART = re.compile(rf'[\s,]*(?:({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))|({_TOKEN})(?=[\s,]|$))')


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """One of the ways to authenticate that a 401 offers (RFC 9110, 11.6.1)."""

    scheme: str
    """Lower-case."""
    parameters: Mapping[str, str]
    """By lower-case name; several `scope` are joined by spaces."""


@dataclass(frozen=True, kw_only=True)
class _Token:
    value: str
    ends: float
    """On the monotonic clock."""


class RegistryAuthentication(httpx.Auth):
    """Sends nothing until the registry asks; then basic credentials or a token, kept for the requests that follow.

    Other hosts (after a redirect, or a foreign Location) never see a credential. One token request at a time runs for
    each scope; a token that was refused is renewed once for the request.
    """

    def __init__(
        self,
        registry: Registry,
        credentials: Credentials | None,
        *,
        realms: Collection[str] = (),
        hosts: PinnedHosts | None = None,
    ) -> None:
        self._registry = registry
        self._hosts = hosts
        self._credentials = credentials
        self._realms = realms
        self._origin = _origin(httpx.URL(registry.url))
        self._basic: str | None = None
        self._tokens: dict[tuple[str, ...], _Token] = {}
        self._locks: dict[tuple[str, ...], threading.Lock] = {}
        self._guard = threading.Lock()

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """One request, and after a 401 at most one token request and the request again."""
        if _origin(request.url) != self._origin:
            yield request
            return
        scope: tuple[str, ...] = request.extensions.get(SCOPE, ())
        used = self._authorization(scope)
        if used is not None:
            request.headers["Authorization"] = used
        response = yield request
        if response.status_code != _UNAUTHORIZED:
            return
        responses.read(response)
        with self._lock(scope):
            current = self._authorization(scope)
            if current is None or current == used:
                current = yield from self._renew(challenges(response), scope, used)
        if current is not None:
            request.headers["Authorization"] = current
            yield request

    def _authorization(self, scope: tuple[str, ...]) -> str | None:
        token = self._tokens.get(scope)
        if token is not None:
            return f"Bearer {token.value}" if time.monotonic() < token.ends else None
        return self._basic

    def _lock(self, scope: tuple[str, ...]) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(scope, threading.Lock())

    def _renew(
        self, offered: Iterable[Challenge], scope: tuple[str, ...], used: str | None
    ) -> Generator[httpx.Request, httpx.Response, str | None]:
        """The Authorization to try next; None where there is nothing to try."""
        by_scheme = {challenge.scheme: challenge for challenge in offered}
        if "bearer" in by_scheme:
            return (yield from self._fetch_token(by_scheme["bearer"], scope))
        credential = self.credential(scope) if "basic" in by_scheme else None
        if credential is None or not credential.username or credential.basic == used:
            return None
        self._basic = credential.basic
        return self._basic

    def hint(self, scope: tuple[str, ...], *, taken: bool) -> str:
        """What to do about a refusal: there is no login, it was not `taken`, or its account has too few rights."""
        host = self._registry.host
        login = f"`docker login {host}` or `podman login {host}`"
        if self.credential(scope) is None:
            return f"no login for {host} is known here: log in with {login}, with an account that may do this"
        if not taken:
            return (
                f"the user or password that is known here for {host} is wrong or has ended: log in again with {login}"
            )
        return f"the login was taken, and its account may not do this: see its rights at {host}"

    def credential(self, scope: tuple[str, ...]) -> Credential | None:
        """For the first repository that a request is about."""
        kind, _, resource = next(iter(scope), "").partition(":")
        repository = resource.rpartition(":")[0] if kind == "repository" else self._registry.prefix
        return self._credentials.find(self._registry.host, repository) if self._credentials is not None else None

    def _fetch_token(
        self, challenge: Challenge, scope: tuple[str, ...]
    ) -> Generator[httpx.Request, httpx.Response, str]:
        """Ask the realm for a token, with credentials where we have some, else as anybody."""
        try:
            realm = httpx.URL(challenge.parameters.get("realm", ""))
            check_realm(self._registry, realm, self._realms, self._hosts)
        except (httpx.InvalidURL, UnicodeError) as error:  # a host that is no IDNA name is seen when it is asked for
            raise AuthRealm(f"the registry {self._registry.host} names a token realm that can't be read") from error
        scopes = merge_scopes((*challenge.parameters.get("scope", "").split(), *scope))
        response = yield _token_request(realm, challenge.parameters.get("service", ""), scopes, self.credential(scope))
        token = self._read_token(response, scope)
        self._tokens[scope] = token
        return f"Bearer {token.value}"

    def _read_token(self, response: httpx.Response, scope: tuple[str, ...]) -> _Token:
        host = response.request.url.host
        answer = responses.read(response)
        if is_transient(response.status_code):
            failure = RegistryUnreachable(f"the token server {host} answered {response.status_code}")
            raise Transient(failure, after=retry_after(response), status=response.status_code)
        if not response.is_success:
            raise RegistryAuth(
                f"{host} gave no token for the registry {self._registry.host} (it answered {response.status_code})",
                hint=self.hint(scope, taken=False),
            )
        try:
            document = json.loads(answer.content)
            value = str(document.get("token") or document.get("access_token") or "")
            lifetime = float(document.get("expires_in") or _LIFETIME)
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise RegistryAuth(f"the answer of the token server {host} can't be read") from error
        if not value.isascii() or not value.isprintable() or not value:
            raise RegistryAuth(f"the token server {host} gave no token that can be sent")
        return _Token(value=value, ends=time.monotonic() + max(_MARGIN, lifetime - _MARGIN))


def challenges(response: httpx.Response) -> list[Challenge]:
    """All that the WWW-Authenticate headers offer; parts that can't be read end the reading of that header."""
    found: list[tuple[str, dict[str, str]]] = []
    for header in response.headers.get_list("www-authenticate"):
        text, position = header[:_HEADER_LIMIT], 0
        while match := _PART.match(text, position):
            position = match.end()
            name, quoted, plain, scheme = match.groups()
            if scheme is not None:
                found.append((scheme.lower(), {}))
            elif found:
                value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
                parameters, key = found[-1][1], name.lower()
                parameters[key] = f"{parameters[key]} {value}" if key == "scope" and key in parameters else value
    return [Challenge(scheme=scheme, parameters=parameters) for scheme, parameters in found]


def pulling(repository: str) -> tuple[str, ...]:
    """The scope of a request that reads."""
    return (f"repository:{repository}:pull",)


def pushing(repository: str) -> tuple[str, ...]:
    """The scope of a request that writes, or belongs to a push: then one token serves it all."""
    return (f"repository:{repository}:pull,push",)


def deleting(repository: str) -> tuple[str, ...]:
    """The scope of a request that deletes."""
    return (f"repository:{repository}:delete,pull",)


def merge_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """One scope per resource, with all its actions: `repository:a:pull` and `repository:a:push` are `...:pull,push`."""
    actions: dict[str, set[str]] = {}
    for scope in scopes:
        resource, _, names = scope.rpartition(":")
        actions.setdefault(resource, set()).update(name for name in names.split(",") if name)
    return tuple(f"{resource}:{','.join(sorted(names))}" for resource, names in sorted(actions.items()) if resource)


def _token_request(
    realm: httpx.URL, service: str, scopes: tuple[str, ...], credential: Credential | None
) -> httpx.Request:
    if credential is not None and credential.identity_token:
        form = {
            "grant_type": "refresh_token",
            "service": service,
            "client_id": "flops",
            "scope": " ".join(scopes),
            "refresh_token": credential.identity_token,
        }
        return httpx.Request("POST", realm, data=form)
    query = [*realm.params.multi_items(), *([("service", service)] if service else []), *(("scope", s) for s in scopes)]
    headers = {"Authorization": credential.basic} if credential is not None and credential.username else {}
    return httpx.Request("GET", realm.copy_with(params=query), headers=headers)


def _origin(url: httpx.URL) -> tuple[str, bytes, int | None]:
    return url.scheme, url.raw_host, url.port or {"http": 80, "https": 443}.get(url.scheme)
