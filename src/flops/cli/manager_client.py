"""A manager, as the commands of its users see it: over HTTP, through restarts, its failures as failures of ours."""

from __future__ import annotations

import json
import re
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Self

import httpx

from flops import http
from flops.cli.refusal import failure_of, json_of, project_of, strange
from flops.errors import BadSetting, FlopsError, ManagerUnreachable, ProjectDecided, ProjectNotFound, UsageError
from flops.http import Retry, Transient
from flops_wire.flops import MANAGER_PORT
from flops_wire.manager import PROJECTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from flops.settings import Settings


#: Bytes of one event: more than a manager takes from a builder.
LIMIT = 16 * 1024 * 1024


def parse(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The events whose data are an object, each as soon as it is whole; one that is cut off at the end is left out."""
    data: list[bytes] = []
    size = 0
    for line in _lines(chunks):
        if not line:
            event = _object(b"\n".join(data))
            data, size = [], 0
            if event is not None:
                yield event
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            size += len(value)
            if size <= LIMIT:
                data.append(value.removeprefix(b" "))


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their ends, which are LF or CR LF. Text may hold what Unicode takes for ends of lines, so bytes are split."""
    rest: list[bytes] = []
    kept = 0
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        for part in (first, *others[:-1]) if others else ():
            rest.append(part)
            yield b"".join(rest).removesuffix(b"\r")
            rest, kept = [], 0
        last = others[-1] if others else first
        kept += len(last)
        if kept <= LIMIT:
            rest.append(last)


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(data) if data else None
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


DEFAULT = f"http://127.0.0.1:{MANAGER_PORT}"
#: Of one request; a manager that restarts is back by then.
RETRY = Retry(tries=5, longest=2.0)
#: And of an event stream, which is tried for ever.
_LONGEST = 5.0
#: A stream without a sign of life (the manager's come every 15 s) is given up and begun anew.
_SILENCE = 45.0
#: Connections in a row that bring nothing of a project that has ended: there is nothing more.
_SILENT = 5
_LATER = {408, 425, 502, 503, 504}
_ID = re.compile(r"[0-9a-f]{24}")
_PREFIX = re.compile(r"[0-9a-f]{1,24}")
_PAGE = 200


class ManagerClient:
    """Talks to one manager; use as a context manager. Every method: ManagerUnreachable, AccessDenied, ManagerRefused."""

    def __init__(self, url: str, client: httpx.Client) -> None:
        self.url = url
        self._client = client

    @classmethod
    def of(cls, manager: str | None, settings: Settings) -> ManagerClient:
        """By `--manager`, FLOPS_MANAGER or on this machine; with the token in FLOPS_API_TOKEN. BadSetting."""
        url = manager_url(manager or settings.manager or DEFAULT)
        token = settings.api_token.get_secret_value() if settings.api_token else ""
        if not token.isascii() or not token.isprintable():
            raise BadSetting("FLOPS_API_TOKEN holds characters that no HTTP header can", hint="copy the token anew")
        client = http.client(settings.ca_bundle, headers={"Authorization": f"Bearer {token}"} if token else None)
        return cls(url, client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def start(self, sla: Mapping[str, Any], *, force: bool = False) -> dict[str, Any]:
        """The new project. However often it has to be sent, the manager starts one: it knows the call by its key."""
        key = {"Idempotency-Key": str(uuid.uuid4())}
        query = {"force": "true"} if force else {}
        return project_of(self._request("POST", "", json=dict(sla), headers=key, params=query), "project")

    def page(self, *, limit: int = 50, offset: int = 0, state: str | None = None, text: str = "") -> dict[str, Any]:
        """`{"projects": [...], "total": N}`, newest first; a manager may know `text` (of an id, for example) or not."""
        more = {name: value for name, value in (("state", state), ("q", text)) if value}
        answer = self._request("GET", "", params={"limit": limit, "offset": offset, **more})
        document = json_of(answer)
        if not isinstance(document, dict) or not isinstance(document.get("projects"), list):
            raise strange(answer)
        return document

    def project(self, project: str) -> dict[str, Any]:
        return project_of(self._request("GET", f"/{project}"))

    def cancel(self, project: str) -> dict[str, Any]:
        """ProjectDecided where it is too late. A cancel that is sent twice, since its answer was lost, is one."""
        tries: list[Exception] = []
        try:
            return project_of(self._request("POST", f"/{project}/cancel", tries=tries))
        except ProjectDecided:
            found = self.project(project) if tries else {}
            if found.get("state") != "cancelled":
                raise
            return found

    def logs(self, project: str) -> str:
        return self._request("GET", f"/{project}/logs").text

    def find(self, prefix: str) -> str:
        """The id of the one project that begins so. ProjectNotFound; UsageError where there are several."""
        wanted = prefix.strip().lower()
        if _ID.fullmatch(wanted):
            return wanted
        found: list[str] = []
        if _PREFIX.fullmatch(wanted):
            offset, total = 0, 1
            while offset < total:
                page = self.page(limit=_PAGE, offset=offset, text=wanted)  # a document has some 40 kB
                total, offset = int(page.get("total") or 0), offset + _PAGE
                found += [one["id"] for one in page["projects"] if str(one.get("id", "")).startswith(wanted)]
        if not found:
            raise ProjectNotFound(
                f"{self.url} has no project {prefix[:64]!r}", hint="`flops project list` shows those there are"
            )
        if len(unique := sorted(set(found))) > 1:
            raise UsageError(
                f"{len(unique)} projects begin with {wanted!r}", hint=f"write more of it: {', '.join(unique[:5])}"
            )
        return found[0]

    def follow(self, project: str, *, lost: Callable[[str], None]) -> Iterator[dict[str, Any]]:
        """The project's events from the first on, each stored one once and in order, and progress as it happens.

        Ends when the manager has no more. A lost connection is told to `lost` and made anew, as often as it takes; only what
        can't get better by waiting (AccessDenied, ProjectNotFound) is raised, and a manager that never answered.
        """
        place = _Place()
        while not place.over:
            before = place.last
            try:
                yield from self._connection(project, place)
                why = "the manager ended the stream"
                if not place.over and self._is_over(project):  # what came meanwhile is still to be had, and then a 204
                    why = "" if place.last > before else why
                    place.over = place.failures >= _SILENT
            except (httpx.HTTPError, ManagerUnreachable) as error:
                if not place.answered:
                    raise self._unreachable(error) from error
                why, _ = http.reason(error)
            if why and not place.over:
                place.failures += 1
                if place.failures == 1:
                    lost(why)
                time.sleep(min(_LONGEST, 0.1 * 2 ** min(place.failures, 10)))

    def _connection(self, project: str, place: _Place) -> Iterator[dict[str, Any]]:
        with self._stream(project, place.last) as answer:
            place.answered = True
            place.over = answer.status_code == httpx.codes.NO_CONTENT
            yield from filter(place.is_new, parse(answer.iter_bytes()))

    def _is_over(self, project: str) -> bool:
        found = self.project(project)
        return bool(found.get("ended")) and found.get("builder") in ("none", "removed")

    def _stream(self, project: str, last: int) -> Any:
        return _Stream(
            self._client.stream(
                "GET",
                f"{self.url}{PROJECTS}/{project}/events",
                headers={"Accept": "text/event-stream", **({"Last-Event-ID": str(last)} if last else {})},
                timeout=httpx.Timeout(30.0, connect=10.0, read=_SILENCE),
            )
        )

    def _request(
        self, method: str, path: str, *, tries: list[Exception] | None = None, **options: Any
    ) -> httpx.Response:
        """One answer of success; a manager that is just restarting is waited for. `tries` takes what failed before."""

        def attempt() -> httpx.Response:
            try:
                answer = self._client.request(method, f"{self.url}{PROJECTS}{path}", **options)
            except httpx.HTTPError as error:
                failure: FlopsError = self._unreachable(error)
                if http.reason(error)[1]:
                    raise failure from error
            else:
                if answer.is_success:
                    return answer
                failure = failure_of(answer)
                if answer.status_code not in _LATER:
                    raise failure
            if tries is not None:
                tries.append(failure)
            raise Transient(failure)

        return RETRY.run(attempt)

    def _unreachable(self, error: Exception) -> ManagerUnreachable:
        why, hint = http.reason(error)
        return ManagerUnreachable(
            f"no manager answers at {self.url}: {why}",
            hint=hint or "start one with `flops serve`, or name another one with --manager or FLOPS_MANAGER",
        )


@dataclass(kw_only=True)
class _Place:
    """How far an event stream was read."""

    last: int = 0
    answered: bool = False
    failures: int = 0
    """Connections in a row that brought nothing new."""
    over: bool = False

    def is_new(self, event: Mapping[str, Any]) -> bool:
        sequence = event.get("sequence")
        if isinstance(sequence, int):
            if sequence <= self.last:
                return False
            self.last, self.failures = sequence, 0
        return True


class _Stream:
    """An answer that is read while it comes; its status judged first."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened

    def __enter__(self) -> httpx.Response:
        answer: httpx.Response = self._opened.__enter__()
        if answer.is_success:
            return answer
        try:
            answer.read()
            error = failure_of(answer)
        finally:
            self._opened.__exit__(None, None, None)
        if answer.status_code in _LATER or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise ManagerUnreachable(error.message)
        raise error

    def __exit__(self, *failure: object) -> None:
        self._opened.__exit__(*failure)


def manager_url(text: str) -> str:
    """`http://HOST[:PORT]` out of what a user wrote; BadSetting."""
    written = text.strip()
    url = (written if "://" in written else f"http://{written}").rstrip("/")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        _bad_url("the manager's address is not a URL")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        _bad_url("the manager's address is none of the form http[s]://HOST[:PORT]")
    if parsed.userinfo:
        _bad_url("the manager's address holds a user name or password")
    return url


def _bad_url(message: str) -> NoReturn:
    raise BadSetting(message, hint=f"for example {DEFAULT}; the token stands in FLOPS_API_TOKEN")
