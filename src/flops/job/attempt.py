"""The job document: what the manager asks of one attempt's builder, read and checked (docs/http.md, "HTTP")."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import httpx

from flops import http
from flops.errors import AttemptOver, BadSetting, ManagerRefused, ManagerUnreachable
from flops.oci.credentials import Credential, FixedCredentials
from flops.oci.reference import Registry
from flops.platforms import Platform
from flops.recipe import Accelerator, Compression, Flavor, Policy, Recipe
from flops.repository.git import GitCredential
from flops.repository.source import parse_source
from flops.request import Request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


#: A week: more than any timer was made for is not meant.
SECONDS_LIMIT = 7 * 24 * 3600


@dataclass(frozen=True, kw_only=True)
class Job:
    """One attempt's work; sources are not judged yet."""

    project: str
    attempt: int
    source: str
    ref: str | None
    platforms: tuple[Platform, ...]
    recipe: Recipe
    registry: Registry
    pull_name: Registry | None
    force: bool
    verbose: bool
    seconds: float
    """From its fetching to its end."""
    allow_local: bool
    allow_hosts: tuple[str, ...]
    git_credential: GitCredential | None = field(repr=False)
    registry_credentials: FixedCredentials = field(repr=False)
    """To push with."""
    base_credentials: FixedCredentials = field(repr=False)
    """The project's own, to read base images with."""

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Self:
        """ManagerRefused where it is not what this version of a builder understands."""
        try:
            recipe = _recipe(document["recipe"])
            if recipe.digest != document["recipe_digest"]:
                raise ManagerRefused(
                    "manager and builder make different recipes of the same request",
                    hint="use the same version for manager and builders",
                )
            secrets = document["credentials"]
            git = secrets["git"]
            return cls(
                project=str(document["project"]),
                attempt=int(document["attempt"]),
                source=str(document["source"]),
                ref=document["ref"],
                platforms=Platform.parse_list(list(document["platforms"])),
                recipe=recipe,
                registry=Registry.parse(document["registry"]),
                pull_name=Registry.parse(document["registry_pull"]) if document["registry_pull"] else None,
                force=bool(document["force"]),
                verbose=bool(document["verbose"]),
                seconds=_seconds(document["seconds"]),
                allow_local=document["allow_local"] is True,
                allow_hosts=tuple(map(str, document["allow_hosts"])),
                git_credential=GitCredential(**{name: git[name] for name in ("host", "username", "password")})
                if git
                else None,
                registry_credentials=_credentials(secrets["registry"]),
                base_credentials=_credentials(secrets["base"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ManagerRefused(
                f"the manager's job document can't be understood: {type(error).__name__}",
                hint="use the same version for manager and builders",
            ) from error

    def request(self) -> Request:
        """The build that it asks for. BadUrl, CredentialInUrl, BlockedAddress: its source is nobody's whom we trust."""
        return Request(
            source=parse_source(self.source, trusted=False, allow_hosts=self.allow_hosts, allow_local=self.allow_local),
            platforms=self.platforms,
            recipe=self.recipe,
            ref=self.ref,
            force=self.force,
            allow_hosts=self.allow_hosts,
            git_credential=self.git_credential,
            registry=self.registry,
            registry_credentials=self.base_credentials,
        )


def _recipe(document: Mapping[str, Any]) -> Recipe:
    return Recipe(
        flavor=Flavor(document["flavor"]) if document["flavor"] else None,
        python=document["python"],
        policy=Policy(document["policy"]),
        accelerator=Accelerator(document["accelerator"]),
        compression=Compression(document["compression"]),
        base=document["base"],
        subdir=document["subdir"],
        groups=tuple(document["groups"]),
    )


def _credentials(entries: Any) -> FixedCredentials:
    return FixedCredentials(
        by_host={one["host"]: Credential(username=one["username"], password=one["password"]) for one in entries}
    )


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 < seconds <= SECONDS_LIMIT:
        raise ValueError(seconds)
    return seconds


#: Seconds in which the manager must hand out the job, whose own time is not known before.
FETCH_SECONDS = 600.0
#: The longest pause between two tries: a manager that was restarted is back within seconds.
_LONGEST = 5.0
_FIRST = 0.1
#: 401 and 410: this attempt is void; 404: its manager knows neither project nor attempt (any more).
_OVER = {401, 404, 410}


class AttemptClient:
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
        """The job document (docs/http.md, "HTTP")."""
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
