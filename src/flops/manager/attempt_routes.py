"""The API for builders: one attempt's job and events, with that attempt's token and no other."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Path
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request  # noqa: TC002 - FastAPI reads annotations when it runs

from flops.connections import address_of, let_in
from flops.errors import AccessDenied, TooMany, UsageError
from flops.manager import documents, schemas
from flops.manager.bodies import parse_body, raw_body
from flops.manager.guard import bearer
from flops.manager.openapi import add_route, answers, body, lock
from flops.throttle import Throttle
from flops_wire.manager import EVENTS_LIMIT, PROJECTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI
    from starlette.responses import Response

    from flops.manager.project import Attempt
    from flops.manager.service import Manager

T = TypeVar("T")
ProjectId = Annotated[str, Path(description="24 hexadecimal digits.", max_length=64)]
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
            openapi_extra=_EVENTS,
            dependencies=_LOCK,
        )

    async def job(self, request: Request, project_id: ProjectId, attempt: Number) -> Response:
        """What a builder is to do; it holds credentials."""
        return JSONResponse(await self._opened(request, self._manager.job, project_id, attempt))

    async def events(self, request: Request, project_id: ProjectId, attempt: Number) -> Response:
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
_EVENTS = body(schemas.EVENTS, {"events": [documents.EVENT_EXAMPLE]})
