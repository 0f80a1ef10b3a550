"""What a node has to reach, and where that can't be: addresses that mean another machine there."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from flops import http
from flops.errors import BadSetting, FlopsError, OrchestratorAuth, OrchestratorUnreachable
from flops.oci.reference import Reference, Registry, is_loopback

if TYPE_CHECKING:
    from pathlib import Path


_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - told apart, not bound to


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """None of these may be a loopback address."""

    manager: str
    """`http[s]://HOST[:PORT]`."""
    registry: str
    """Where builders push, `[http://]HOST[:PORT][/PREFIX]`."""
    registry_pull: str | None = None
    image: str
    """The builder image, by digest or by a tag that is written once: a node never pulls a reference twice."""

    @property
    def code(self) -> str:
        """The image as a node's container engine takes it."""
        return str(Reference.parse(self.image))

    def check(self) -> None:
        """BadSetting at the first that a node can't use."""
        _check_host("FLOPS_ADVERTISE", urlsplit(self.manager).hostname or "")
        for name, text in (("FLOPS_REGISTRY", self.registry), ("FLOPS_REGISTRY_PULL", self.registry_pull)):
            if text is not None:
                _check_host(name, Registry.parse(text).hostname)
        try:
            image = Reference.parse(self.image)
        except FlopsError as error:
            raise BadSetting(
                f"FLOPS_BUILDER_IMAGE {self.image!r} is no image: {error.message}",
                hint="flops images builder makes one and prints its reference",
            ) from error
        _check_host("FLOPS_BUILDER_IMAGE", image.registry.hostname)
        if not image.digest and image.tag in (None, "", "latest"):
            raise BadSetting(
                f"FLOPS_BUILDER_IMAGE {self.image!r} can name another image tomorrow, and a node pulls a name once",
                hint="name it by its digest, or by the tag that flops images builder prints",
            )


def _check_host(setting: str, host: str) -> None:
    if not host:
        raise BadSetting(f"{setting} names no host", hint=f"set {setting} to what the nodes reach it by")
    if is_loopback(host) or host in _WILDCARDS:
        raise BadSetting(
            f"{setting} is {host}, which is another machine on each node",
            hint=f"set {setting} to an address or name that the nodes reach",
        )


_HINT = "see that Oakestra's root runs there; the manager asks again by itself"


@dataclass(frozen=True, kw_only=True)
class OakestraAnswer:
    status: int
    document: Any
    """Decoded; None where the body is no JSON."""

    @property
    def good(self) -> bool:
        return self.status == httpx.codes.OK


class OakestraApi:
    """Calls with a valid token; safe to use from several threads. Connects at the first call."""

    def __init__(
        self,
        url: str,
        *,
        username: str,
        password: str,
        authorities: Path | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._username = username
        self._password = password
        self._client = http.client(authorities, transport=transport, seconds=20, connect=5)
        self._lock = threading.Lock()
        self._token = ""
        self._refresh = ""

    def close(self) -> None:
        self._client.close()

    def login(self) -> None:
        """OrchestratorAuth where name and password are not taken; OrchestratorUnreachable."""
        with self._lock:
            self._login()

    def get(self, path: str) -> OakestraAnswer:
        return self._call("GET", path)

    def post(self, path: str, document: object | None = None) -> OakestraAnswer:
        return self._call("POST", path, document)

    def delete(self, path: str) -> OakestraAnswer:
        return self._call("DELETE", path)

    def _call(self, method: str, path: str, document: object | None = None) -> OakestraAnswer:
        """One request; with a new token where the old one is not taken any more, so a refused one has done nothing."""
        with self._lock:
            if not self._token:
                self._login()
            token = self._token
        answer = self._send(method, path, document, token)
        if answer.status == httpx.codes.UNAUTHORIZED:
            answer = self._send(method, path, document, self._renewed(token))
        if answer.status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise OrchestratorAuth(
                f"Oakestra at {self.url} refuses {self._username!r} {method} {path} ({answer.status})",
                hint="give this user of Oakestra the right to deploy applications",
            )
        return answer

    def _renewed(self, old: str) -> str:
        """Another token than `old`, whoever of several threads comes first."""
        with self._lock:
            if self._token == old:
                answer = self._send("POST", "/api/auth/refresh", None, self._refresh) if self._refresh else None
                token = _text(answer, "token") if answer is not None and answer.good else ""
                if token:
                    self._token = token
                else:
                    self._login()
            return self._token

    def _login(self) -> None:
        words = {"username": self._username, "password": self._password}
        answer = self._send("POST", "/api/auth/login", words)
        if answer.status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise OrchestratorAuth(
                f"Oakestra at {self.url} does not take the password of {self._username!r}",
                hint="correct FLOPS_OAKESTRA_USERNAME and FLOPS_OAKESTRA_PASSWORD",
            )
        self._token, self._refresh = _text(answer, "token"), _text(answer, "refresh_token")
        if not answer.good or not self._token:
            raise self.unexpected("POST", "/api/auth/login", answer)

    def unexpected(self, method: str, path: str, answer: OakestraAnswer) -> OrchestratorUnreachable:
        """What to raise for an answer that tells nothing but that something is wrong there."""
        return OrchestratorUnreachable(f"Oakestra at {self.url} answers {answer.status} to {method} {path}", hint=_HINT)

    def _send(self, method: str, path: str, document: object | None, token: str = "") -> OakestraAnswer:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            response = self._client.request(method, self.url + path, json=document, headers=headers)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise BadSetting(f"FLOPS_OAKESTRA_URL {self.url!r} is no address", hint="http://HOST:10000") from error
        except (httpx.HTTPError, RuntimeError) as error:  # the latter: closed meanwhile
            why, hint = http.reason(error)
            raise OrchestratorUnreachable(
                f"Oakestra at {self.url} can't be reached: {why}", hint=hint or _HINT
            ) from error
        return OakestraAnswer(status=response.status_code, document=decode(response.content))


def decode(body: bytes) -> Any:
    """JSON, or JSON in a JSON string; None for what is neither."""
    try:
        document = json.loads(body)
        return json.loads(document) if isinstance(document, str) else document
    except (ValueError, RecursionError):
        return None


def _text(answer: OakestraAnswer, key: str) -> str:
    value = answer.document.get(key) if isinstance(answer.document, dict) else None
    return value if isinstance(value, str) else ""
