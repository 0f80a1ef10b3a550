"""The page's login: a token once, then a cookie (`flops.manager.session`)."""

from __future__ import annotations

import logging
import re
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from flops.errors import AccessDenied, FlopsError, LoginThrottled
from flops.manager.answers import status_of
from flops.manager.gate import TOKEN_LIMIT, OakestraGate
from flops.manager.guard import session_of
from flops.manager.pages import login_page, stylesheet

if TYPE_CHECKING:
    from starlette.requests import Request

    from flops.manager.access import Access
    from flops.manager.service import Manager

_log = logging.getLogger("flops.http")
HOME = "/projects"
#: A path on this host; `//HOST` and `/\HOST` are none.
_TARGET = re.compile(r"/(?![/\\])[\x21-\x7e]{0,500}")


class LoginPages:
    """GET and POST /login, POST /logout, and what they are styled with."""

    def __init__(self, access: Access, manager: Manager) -> None:
        self._access = access
        self._manager = manager
        access.sessions.ended.update(manager.ended_sessions())

    def routes(self) -> list[Route]:
        return [
            Route("/login", self.form, methods=["GET"]),
            Route("/login", self.enter, methods=["POST"]),
            Route("/logout", self.leave, methods=["POST"]),
            Route("/static/manager.css", self.style, methods=["GET"]),
        ]

    async def form(self, request: Request) -> Response:
        target = _target(request.query_params.get("next", ""))
        if not self._access.gate.wants_token:
            return RedirectResponse(target, HTTPStatus.SEE_OTHER)
        return self._page(target)

    async def enter(self, request: Request) -> Response:
        """A form as browsers send it; what it holds is kept nowhere."""
        try:
            fields = parse_qs((await request.body()).decode("latin-1"), max_num_fields=10)
        except ValueError:  # more fields than a form of ours has
            fields = {}
        token = fields.get("token", [""])[0].strip()
        target = _target(fields.get("next", [""])[0])
        gate, sessions = self._access.gate, self._access.sessions
        if not gate.wants_token:
            return RedirectResponse(target, HTTPStatus.SEE_OTHER)
        try:
            if not token or len(token) > TOKEN_LIMIT:
                raise AccessDenied("there is no token")
            await self._access.log_in(token, request.scope.get("client"))
        except FlopsError as error:
            told = f"{error.message}; {error.hint}" if isinstance(error, LoginThrottled) else error.message
            page = self._page(target, told=told, status=status_of(error))
            if isinstance(error, LoginThrottled):
                page.headers["Retry-After"] = str(error.seconds)
            return page
        seconds = gate.session_seconds(token)
        return RedirectResponse(
            target,
            HTTPStatus.SEE_OTHER,
            headers={"Set-Cookie": sessions.cookie(sessions.make(seconds), seconds)},
        )

    async def leave(self, request: Request) -> Response:
        """The session ends here too: a copy of its cookie opens nothing any more."""
        sessions = self._access.sessions
        ended = sessions.end(session_of(request.headers))
        if ended is not None:
            try:
                await run_in_threadpool(self._manager.end_session, *ended)
            except FlopsError as error:
                _log.warning("a logout is forgotten at the next start: %s", error)
        return RedirectResponse("/login", HTTPStatus.SEE_OTHER, headers={"Set-Cookie": sessions.cookie("", 0)})

    async def style(self, _request: Request) -> Response:
        return Response(stylesheet(), media_type="text/css", headers={"Cache-Control": "max-age=3600"})

    def _page(self, target: str, *, told: str = "", status: HTTPStatus = HTTPStatus.OK) -> Response:
        label = "Your Oakestra token" if isinstance(self._access.gate, OakestraGate) else "The manager's token"
        return HTMLResponse(login_page(told=told, label=label, target=target), status)


def _target(text: str) -> str:
    return text if _TARGET.fullmatch(text) else HOME
