"""The API for people and their programs: projects are started, listed, followed and cancelled."""

from __future__ import annotations

import re
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlencode

import anyio
from fastapi import Header, Path, Query
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request  # noqa: TC002 - FastAPI reads annotations when it runs
from starlette.responses import Response

from flops.connections import address_of, let_in
from flops.errors import AccessDenied, ProjectNotFound, TooMany, UsageError
from flops.service import documents, openapi
from flops.service.guard import bearer
from flops.service.openapi import TOKEN, add_route, answers, body, example, lock
from flops.service.project import State  # noqa: TC001 - FastAPI reads annotations when it runs
from flops.service.refusals import parse_body, raw_body
from flops.throttle import Throttle
from flops_wire.manager import EVENTS_LIMIT, PROJECTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

    from flops.service.operations import Manager
    from flops.service.project import Attempt
    from flops.service.streams import Streams


ID = re.compile(r"[0-9a-f]{24}")
#: The largest number that the database knows.
_MOST = 2**63 - 1
#: Readers of logs at once: an orchestrator may be slow to tell them, and nobody else shall wait for that.
_LOGS = 8

ProjectId = Annotated[str, Path(description="24 hexadecimal digits.", examples=[documents.PROJECT_EXAMPLE["id"]])]


class ProjectRoutes:
    """The manager does everything."""

    def __init__(self, manager: Manager, streams: Streams, *, locked: bool) -> None:
        self._manager = manager
        self._streams = streams
        self._lock = lock("operator", TOKEN) if locked else []
        self._logs = anyio.CapacityLimiter(_LOGS)

    def add_to(self, app: FastAPI) -> None:
        for path, endpoint, method, responses, more in (
            ("", self.start, "POST", _STARTED, {"openapi_extra": _SLA}),
            ("", self.list, "GET", _LISTED, {}),
            ("/{project_id}", self.show, "GET", _SHOWN, {}),
            ("/{project_id}/cancel", self.cancel, "POST", _CANCELLED, {}),
            ("/{project_id}/events", self.events, "GET", _EVENTS, {"response_class": Response}),
            ("/{project_id}/logs", self.logs, "GET", _LOGGED, {"response_class": Response}),
        ):
            add_route(
                app,
                PROJECTS + path,
                endpoint,
                method,
                tag="projects",
                responses=responses,
                dependencies=self._lock,
                **more,
            )

    async def start(
        self,
        request: Request,
        idempotency_key: Annotated[
            str | None, Header(pattern="^[!-~]{1,255}$", description="The same key stands for the same project.")
        ] = None,
        force: Annotated[bool, Query(description="Build although matching images stand, and move their tags.")] = False,
    ) -> Response:
        """Start a project from an SLA; answered at once, the commit is resolved after it."""
        data = await raw_body(request)
        return await run_in_threadpool(self._start, data, idempotency_key, force=force)

    def list(
        self,
        limit: Annotated[int, Query(ge=1, le=200, description="Projects in one answer.")] = 50,
        offset: Annotated[int, Query(ge=0, le=_MOST, description="Projects to pass over.")] = 0,
        state: Annotated[State | None, Query(description="Only projects in this state.")] = None,
        q: Annotated[
            str,
            Query(
                max_length=255, description="Only projects whose repository holds it, or whose commit or id begins so."
            ),
        ] = "",
    ) -> Response:
        """List projects, newest first; the header Link (RFC 8288) leads to further ones."""
        page = self._manager.projects(limit=limit, offset=offset, state=state, text=q)
        document = {
            "projects": [project.to_json() for project in page.projects],
            "total": page.total,
            "limit": limit,
            "offset": offset,
        }
        return JSONResponse(document, headers=_links(page.total, limit, offset, state, q))

    def show(self, project_id: ProjectId) -> Response:
        """Show one project."""
        return JSONResponse(self._manager.project(_known(project_id)).to_json())

    def cancel(self, project_id: ProjectId) -> Response:
        """Cancel a project; too late once its tags move."""
        return JSONResponse(self._manager.cancel(_known(project_id)).to_json())

    async def events(
        self,
        project_id: ProjectId,
        last_event_id: Annotated[
            str | None, Header(description="Where a reader was: the id of the last event that it has.")
        ] = None,
        after: Annotated[int, Query(ge=0, le=_MOST, description="The same, for programs.")] = 0,
        follow: Annotated[
            bool, Query(description="Wait for further events; else end after those that are there.")
        ] = True,
    ) -> Response:
        """Follow a project's events (text/event-stream).

        The id is the event's sequence, the event's name its kind, the data the event as JSON. Progress has no id and is
        not repeated. The stream ends once the project has ended and its builder is gone; who comes back then gets 204.
        """
        place = after
        if last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit():
            place = max(after, min(int(last_event_id[:20]), _MOST))
        return await self._streams.answer(_known(project_id), place, follow=follow)

    async def logs(self, project_id: ProjectId) -> Response:
        """What the builder printed, as far as it is kept."""
        text = await anyio.to_thread.run_sync(self._manager.log_text, _known(project_id), limiter=self._logs)
        return Response(text.encode("utf-8", "replace"), media_type="text/plain")

    def _start(self, data: bytes, key: str | None, *, force: bool) -> Response:
        submission = self._manager.submit(parse_body(data), idempotency_key=key, force=force)
        project = submission.project
        message = "a new project was started" if submission.created else "this project was started before"
        return JSONResponse(
            {"message": f"{message}: {project.id}", "project": project.to_json()},
            # FLOps' command line takes nothing but 200 for success
            status_code=HTTPStatus.OK,
            headers={"Location": f"{PROJECTS}/{project.id}"},
        )


def _known(project_id: str) -> str:
    """What can't be an id is not looked for."""
    if not ID.fullmatch(project_id):
        raise ProjectNotFound("there is no such project", hint="GET /api/flops/projects lists them")
    return project_id


def _links(total: int, limit: int, offset: int, state: State | None, q: str) -> dict[str, str]:
    more = {**({"state": state.value} if state else {}), **({"q": q} if q else {})}

    def link(rel: str, start: int) -> str:
        return f'<{PROJECTS}?{urlencode({"limit": limit, "offset": start, **more})}>; rel="{rel}"'

    links = [link("first", 0)]
    if offset > 0:
        links.append(link("prev", max(0, min(offset, total) - limit)))  # from beyond the end to the last ones
    if offset + limit < total:
        links.append(link("next", offset + limit))
    return {"Link": ", ".join(links)}


_STARTED: dict[int | str, dict[str, Any]] = answers(
    documents.SubmissionDocument,
    "The project, new or (with a key) the one that was started before.",
    {"message": "a new project was started: " + documents.PROJECT_EXAMPLE["id"], "project": documents.PROJECT_EXAMPLE},
    400, 409, 413, 415, 422, 429,
)  # fmt: skip
_SLA = body(openapi.SLA, documents.SLA_EXAMPLE)
_LISTED = answers(
    documents.PageDocument,
    "Projects, and how many there are in all.",
    {"projects": [documents.PROJECT_EXAMPLE], "total": 1, "limit": 50, "offset": 0},
    422,
)
_SHOWN = answers(documents.ProjectDocument, "The project.", documents.PROJECT_EXAMPLE, 404, 422)
_CANCELLED = answers(documents.ProjectDocument, "The project as it is then.", documents.PROJECT_EXAMPLE, 404, 409, 422)
_EVENTS = example("text/event-stream", "The events.", 404, 422, 429, schema=openapi.STREAM) | {
    204: {"description": "The project has ended, and no event is left to be read."}
}
_LOGGED = example("text/plain", "The text.", 404, 422)


T = TypeVar("T")
AttemptProjectId = Annotated[str, Path(description="24 hexadecimal digits.", max_length=64)]
Number = Annotated[int, Path(description="The attempt, from 1.", ge=1, le=1_000_000)]


class AttemptRoutes:
    """A builder that is told 401 or 410 ends at once."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        # nobody guesses these, and a builder shares its address with others: failures are told and counted alone
        self._throttle = Throttle("an attempt")
        self._throttle.on_failure = partial(manager.tallies.add, "logins_failed")

    def add_to(self, app: FastAPI) -> None:
        path = PROJECTS + "/{project_id}/attempts/{attempt}"
        add_route(app, f"{path}/job", self.job, "GET", tag="builders", responses=_JOB, dependencies=_LOCK)
        add_route(
            app,
            f"{path}/events",
            self.events,
            "POST",
            tag="builders",
            responses=_POSTED,
            openapi_extra=_POST_EVENTS,
            dependencies=_LOCK,
        )

    async def job(self, request: Request, project_id: AttemptProjectId, attempt: Number) -> Response:
        """What a builder is to do; it holds credentials."""
        return JSONResponse(await self._opened(request, self._manager.job, project_id, attempt))

    async def events(self, request: Request, project_id: AttemptProjectId, attempt: Number) -> Response:
        """Take what a builder tells; answered once it is on the disk.

        The event of stage push, kind started and code TAGGING asks for the leave to move tags, and 200 grants it. An event
        that came before is kept once. The first terminal event is the project's outcome.
        """
        # who may not is not read from
        admitted = await self._opened(request, self._manager.admit, project_id, attempt)
        data = await raw_body(request)
        return await run_in_threadpool(self._post, admitted, data)

    async def _opened(self, request: Request, call: Callable[[str, int, str], T], project: str, attempt: int) -> T:
        token = _token(request)
        try:
            answer = await run_in_threadpool(call, project, attempt, token)
        except AccessDenied:
            self._throttle.failed(address_of(request.scope.get("client")))
            raise
        let_in(request.scope)
        return answer

    def _post(self, admitted: Attempt, data: bytes) -> Response:
        return JSONResponse(self._manager.post_events(admitted, _events(parse_body(data))))


def _events(document: object) -> list[dict[str, Any]]:
    events = document.get("events") if isinstance(document, dict) else None
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise UsageError('the body is not {"events": [...]} with objects in it', hint="see /docs for their shape")
    if len(events) > EVENTS_LIMIT:
        raise TooMany(f"{len(events)} events in one request", hint=f"send {EVENTS_LIMIT} at most")
    return events


def _token(request: Request) -> str:
    token = bearer(request.headers)
    if not token:
        raise AccessDenied("this needs the attempt's token", hint="builders have it in FLOPS_JOB_TOKEN")
    return token


_LOCK = lock("attempt", "The attempt's own token (FLOPS_JOB_TOKEN).")
_JOB = answers(documents.JobDocument, "The job.", documents.JOB_EXAMPLE, 404, 410, 422)
_POSTED = answers(
    documents.AcceptedDocument, "How many were taken.", {"accepted": 1}, 404, 409, 410, 413, 415, 422, 429
)
_POST_EVENTS = body(openapi.EVENTS, {"events": [documents.EVENT_EXAMPLE]})
