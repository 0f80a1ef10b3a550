"""The manager as one attempt's builder sees it: a job to fetch, events to post. Asked again until the attempt's time is over."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import httpx

from flops import http
from flops.errors import AttemptOver, BadSetting, ManagerRefused, ManagerUnreachable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: Seconds in which the manager must hand out the job, whose own time is not known before.
FETCH_SECONDS = 600.0
#: The longest pause between two tries: a manager that was restarted is back within seconds.
_LONGEST = 5.0
_FIRST = 0.1
#: 401 and 410: this attempt is void; 404: its manager knows neither project nor attempt (any more).
_OVER = {401, 404, 410}


class Attempt:
    """Talks to the manager; AttemptOver where it wants no more of this attempt, ManagerUnreachable at `expires`.

    Constructing it connects to nothing. Once `expires` is set, several threads may use it.
    """

    def __init__(
        self, url: str, token: str, *, ca_bundle: Path | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._url = _checked(url)
        if not token.isascii() or not token.isprintable():
            raise BadSetting(
                "FLOPS_JOB_TOKEN holds characters that no HTTP header can", hint="the manager sets it for its builders"
            )
        self._expires: float | None = None
        self._stopped = threading.Event()
        headers = {"Authorization": f"Bearer {token}"}
        self._client = http.client(ca_bundle, transport=transport, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._client.close()

    def expires(self, seconds: float) -> None:
        """From now on, tries end after that many seconds."""
        self._expires = time.monotonic() + seconds

    def stop(self) -> None:
        """No further try; one that waits ends with AttemptOver."""
        self._stopped.set()

    def job(self) -> Mapping[str, Any]:
        """The job document (ARCHITECTURE.md, "HTTP")."""
        answer = self._request("GET", "/job")
        try:
            document = answer.json()
        except ValueError as error:
            raise ManagerRefused("the manager's job document is not JSON") from error
        if not isinstance(document, dict):
            raise ManagerRefused("the manager's job document is not an object")
        return document

    def wait(self) -> bool:
        """Until the manager answers; whether it was away."""
        missed: list[str] = []
        self._request("GET", "/job", missed=missed)
        return bool(missed)

    def post(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Returns once the manager has committed all of them; ManagerRefused where it can't take them as they are."""
        self._request("POST", "/events", json={"events": list(events)})

    def _request(self, method: str, path: str, *, missed: list[str] | None = None, **options: Any) -> httpx.Response:
        """`missed` takes why it had to be tried again."""
        if self._expires is None:
            self.expires(FETCH_SECONDS)
        pause = _FIRST
        while True:
            if self._stopped.is_set():
                raise AttemptOver("the builder is being stopped")
            after, told = 0.0, ""
            try:
                answer = self._client.request(method, self._url + path, **options)
            except httpx.HTTPError as error:
                why, told = http.reason(error)
            else:
                if answer.status_code == httpx.codes.OK:
                    return answer
                why, after = self._judge(answer)
            if missed is not None:
                missed.append(why)
            if told or time.monotonic() + max(pause, after) > (self._expires or 0.0):
                hint = told or "see that it runs, and that builders reach the address in FLOPS_ADVERTISE"
                raise ManagerUnreachable(
                    f"the manager at {self._host} did not answer in this attempt's time: {why}", hint=hint
                )
            self._stopped.wait(max(after, pause * random.uniform(0.5, 1.5)))  # noqa: S311 - no secret
            pause = min(_LONGEST, 2 * pause)

    def _judge(self, answer: httpx.Response) -> tuple[str, float]:
        """Why to try again and after how many seconds; AttemptOver or ManagerRefused where that is of no use."""
        status = answer.status_code
        if status in _OVER:
            raise AttemptOver(f"the manager at {self._host} wants no more of this attempt (status {status})")
        if status == httpx.codes.TOO_EARLY or status >= httpx.codes.INTERNAL_SERVER_ERROR or http.is_transient(status):
            return f"status {status}", http.retry_after(answer) or 0.0
        raise ManagerRefused(
            f"the manager at {self._host} answered {status}: {_told(answer)}",
            hint="use the same version for manager and builders",
        )

    @property
    def _host(self) -> str:
        return httpx.URL(self._url).netloc.decode("ascii", "replace")


def _checked(url: str) -> str:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL("")
    if parts.scheme not in {"http", "https"} or not parts.host:
        raise BadSetting("FLOPS_JOB_URL is no http(s) URL", hint="the manager sets it for its builders")
    return url.rstrip("/")


def _told(answer: httpx.Response) -> str:
    """The message of the manager's error document, where there is one."""
    try:
        error = answer.json()["error"]
        return f"{error['code']}: {error['message']}"[:500]
    except (ValueError, KeyError, TypeError):
        return "without a reason"
