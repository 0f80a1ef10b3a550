"""Oakestra's root API: logging in, and answers made one kind of value. Its oddities end here; `oakestra` has the sense.

Access tokens live ten minutes. Documents come as JSON, or as a JSON string that holds JSON, sometimes called text/html.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from flops import http
from flops.errors import BadSetting, OrchestratorAuth, OrchestratorUnreachable

if TYPE_CHECKING:
    from pathlib import Path

_HINT = "see that Oakestra's root runs there; the manager asks again by itself"


@dataclass(frozen=True, kw_only=True)
class Answer:
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

    def get(self, path: str) -> Answer:
        return self._call("GET", path)

    def post(self, path: str, document: object | None = None) -> Answer:
        return self._call("POST", path, document)

    def delete(self, path: str) -> Answer:
        return self._call("DELETE", path)

    def _call(self, method: str, path: str, document: object | None = None) -> Answer:
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

    def unexpected(self, method: str, path: str, answer: Answer) -> OrchestratorUnreachable:
        """What to raise for an answer that tells nothing but that something is wrong there."""
        return OrchestratorUnreachable(f"Oakestra at {self.url} answers {answer.status} to {method} {path}", hint=_HINT)

    def _send(self, method: str, path: str, document: object | None, token: str = "") -> Answer:
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
        return Answer(status=response.status_code, document=decode(response.content))


def decode(body: bytes) -> Any:
    """JSON, or JSON in a JSON string; None for what is neither."""
    try:
        document = json.loads(body)
        return json.loads(document) if isinstance(document, str) else document
    except ValueError:
        return None


def _text(answer: Answer, key: str) -> str:
    value = answer.document.get(key) if isinstance(answer.document, dict) else None
    return value if isinstance(value, str) else ""
