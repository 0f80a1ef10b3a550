"""A project's events as server-sent events: replayed from where a reader was, then as they happen.

A stream costs no thread. It ends when the project has its outcome and nothing of its builder is left (so that readers
see it being removed), when the manager stops, or after some hours; browsers come back by themselves with Last-Event-ID.
A reader that comes back after the end is answered 204, which ends its asking (HTML, 9.2.3).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import OrderedDict
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from flops.errors import FlopsError, TooMany
from flops.service.project import BuilderState
from flops_wire.events import TERMINAL_KINDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

    from flops.service.bus import Event, Subscription
    from flops.service.operations import Manager
    from flops.service.project import Project

STREAMS = 2000
LIFETIME = 6 * 3600.0
KEEPALIVE = 15
#: Seconds without an event after which the project is looked at; and once it has ended.
_IDLE, _ENDING = 15.0, 1.0
#: A reader that takes nothing for so long is let go.
_SEND_SECONDS = 60.0
#: Events that are kept as they travel.
_WRITTEN = 64
#: Milliseconds until a browser comes back.
_RETRY = 2000


class Streams:
    """All streams of a manager: how many there may be, and their common end."""

    def __init__(self, manager: Manager, *, most: int = STREAMS, lifetime: float = LIFETIME) -> None:
        self._manager = manager
        self._most = most
        self._lifetime = lifetime
        self._waiting: set[asyncio.Future[Any]] = set()
        self._closed = False
        self._written = _Written()
        self._looks: dict[tuple[str, int], asyncio.Future[tuple[bool, bool]]] = {}
        self.count = 0

    async def answer(self, project_id: str, after: int, *, follow: bool) -> Response:
        """TooMany, ProjectNotFound."""
        if await run_in_threadpool(self._over, project_id, after):
            return Response(status_code=HTTPStatus.NO_CONTENT)
        if self.count >= self._most or self._closed:
            raise TooMany(f"{self.count} event streams are open already", hint="close some, or come back later")
        events = self._follow(project_id, after) if follow else self._replay(project_id, after)
        return _EventStream(_shown(events, self._written), ping=KEEPALIVE, send_timeout=_SEND_SECONDS, sep="\n")

    def close(self) -> None:
        """End every stream, and let none begin; in the loop's thread."""
        self._closed = True
        for waiting in list(self._waiting):
            waiting.cancel()

    async def _replay(self, project_id: str, after: int) -> AsyncIterator[Event]:
        while page := await run_in_threadpool(self._manager.events, project_id, after=after):
            for event in page:
                after = event["sequence"]
                yield event

    async def _follow(self, project_id: str, after: int) -> AsyncIterator[Event]:
        until = asyncio.get_running_loop().time() + self._lifetime
        self.count += 1
        try:
            with self._manager.subscribe(project_id, after=after) as subscription:
                async for event in self._until_over(subscription, project_id, after, until):
                    yield event
        finally:
            self.count -= 1

    async def _until_over(
        self, subscription: Subscription, project_id: str, after: int, until: float
    ) -> AsyncIterator[Event]:
        """Waits for the next event without ever breaking off a read: what was read and not told would be lost."""
        loop, events = asyncio.get_running_loop(), aiter(subscription)
        following: asyncio.Future[Event] | None = None
        patience = _IDLE
        try:
            while loop.time() < until and not self._closed:
                if following is None:
                    following = asyncio.ensure_future(anext(events))
                    self._waiting.add(following)
                await asyncio.wait({following}, timeout=min(patience, until - loop.time()))
                if following.cancelled():
                    return
                if following.done():
                    self._waiting.discard(following)
                    event, following = following.result(), None
                    after = event.get("sequence") or after
                    yield event
                    if not _may_be_last(event):
                        continue
                ended, over = await self._look(project_id, after)
                patience = _ENDING if ended else _IDLE
                if over:
                    return
        finally:
            if following is not None:
                self._waiting.discard(following)
                following.cancel()

    async def _look(self, project_id: str, after: int) -> tuple[bool, bool]:
        """Whether the project has ended, and whether nothing more will come: asked once for all readers of this place."""
        key = (project_id, after)
        if key not in self._looks:
            look = self._looks[key] = asyncio.ensure_future(run_in_threadpool(self._standing, project_id, after))
            look.add_done_callback(lambda _: self._looks.pop(key, None))
        return await asyncio.shield(self._looks[key])

    def _standing(self, project_id: str, after: int) -> tuple[bool, bool]:
        project = self._manager.project(project_id)
        over = is_over(project) and not self._manager.events(project_id, after=after, limit=1)
        return project.state.ended, over

    def _over(self, project_id: str, after: int) -> bool:
        """Nothing more will come, and nothing is left to be read."""
        return self._standing(project_id, after)[1]


class _EventStream(EventSourceResponse):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # a reader that takes nothing, and a project that was forgotten meanwhile: the connection ends, nothing else does
        with contextlib.suppress(SendTimeoutError, FlopsError):
            await super().__call__(scope, receive, send)


def is_over(project: Project) -> bool:
    """It has its outcome, and nothing of its builder is left."""
    return project.state.ended and project.builder in (BuilderState.NONE, BuilderState.REMOVED)


def _may_be_last(event: Event) -> bool:
    return event["kind"] in TERMINAL_KINDS or event["stage"] == "remove"


async def _shown(events: AsyncIterator[Event], written: _Written) -> AsyncIterator[bytes]:
    first = f"retry: {_RETRY}\n".encode()
    async for event in events:
        yield first + written.bytes(event)
        first = b""


class _Written:
    """Events as they travel, written once for all who read the same at the same time."""

    def __init__(self) -> None:
        self._kept: OrderedDict[object, tuple[Event, bytes]] = OrderedDict()

    def bytes(self, event: Event) -> bytes:
        """The id is the sequence; progress has none, so that a reader's place stays at the last stored event."""
        sequence = event.get("sequence")
        key = id(event) if sequence is None else (event.get("project"), sequence)
        if key not in self._kept:  # with the event itself: as long as it is kept, no other one has its identity
            self._kept[key] = (event, _encoded(event))
            if len(self._kept) > _WRITTEN:
                self._kept.popitem(last=False)
        return self._kept[key][1]


def _encoded(event: Event) -> bytes:
    sequence = event.get("sequence")
    return ServerSentEvent(
        data=json.dumps(event, ensure_ascii=False, separators=(",", ":")),
        event=event["kind"],
        id=str(sequence) if sequence is not None else None,
        sep="\n",
    ).encode()
