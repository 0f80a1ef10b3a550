"""How a client proves who it is: basic (RFC 7617) and the token flow of the distribution project, as an httpx.Auth."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from flops.errors import AuthRealm, RegistryAuth, RegistryUnreachable
from flops.http import Transient, is_transient, retry_after
from flops.oci import answers
from flops.oci.hosts import check_realm

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable, Mapping

    from flops.oci.addresses import PinnedHosts
    from flops.oci.credentials import Credential, Credentials
    from flops.oci.reference import Registry

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
        answers.read(response)
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
        answer = answers.read(response)
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
