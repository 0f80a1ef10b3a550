"""The observer's TCP port of the original: FLOps' components send it one text in each connection, to its end.

Such a text does not say which project it is about; the original has a port for each. Here it goes to the project that it
names by its id, else to the only project that has not ended, else, where none is under way, to the one whose images
were ready last (its actors are training now). What fits none of these stands in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from flops.errors import BadSetting, FlopsError, ProjectNotFound
from flops.service.project import State
from flops.throttle import Seldom
from flops_wire.flops import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flops.service.operations import Page
    from flops.service.project import Project

#: Bytes of one message; what comes beyond is not read.
MESSAGE_LIMIT = 64 * 1024
#: Seconds for a whole message, and without a byte of it; what has come by then is the message.
SECONDS, SILENCE = 15.0, 3.0
#: Connections at once, messages that wait to be entered, and bytes of all that come or wait; what is beyond is dropped.
CONNECTIONS, QUEUE, BYTES = 256, 1000, 4 * 1024**2
#: Bytes of a connection that are taken from the kernel before they are asked for.
_AHEAD = 4096
#: Seconds after the images in which actors may still tell of their training.
TRAINING_SECONDS = 24 * 3600
ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{24}(?![0-9a-f])")

_log = logging.getLogger("flops.service.inbox")


class Notes(Protocol):
    """Of the manager, what an inbox needs."""

    def project(self, id: str) -> Project: ...  # noqa: A002

    def projects(self, *, limit: int, offset: int = 0, state: State | None = None) -> Page: ...

    def note(self, id: str, text: str) -> None: ...  # noqa: A002


class Inbox:
    """Lives in the event loop that `start` is called in; the manager is asked in threads, one message after the other."""

    def __init__(self, manager: Notes) -> None:
        self._manager = manager
        self._server: asyncio.Server | None = None
        self._queue: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(QUEUE)
        self._held = 0  # bytes
        self._seldom = Seldom()
        self._clerk: asyncio.Task[None] | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; the port (chosen, where `port` is 0). BadSetting where it is taken."""
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=_AHEAD)
        except OSError as error:
            raise BadSetting(
                f"the observer's port {port} on {host} can't be listened at: {error.strerror}",
                hint="choose another one with --observer-port",
            ) from error
        self._clerk = asyncio.create_task(self._enter())
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """No further connections; messages that have come are still entered."""
        if self._server is None or self._clerk is None:
            return
        self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._queue.join()
        self._clerk.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._clerk

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        peer = str((writer.get_extra_info("peername") or ("?",))[0])
        if task is None or len(self._open) >= CONNECTIONS:
            self._drop(peer)
            writer.close()
            return
        self._open.add(task)
        data = bytearray()
        try:
            await self._read(reader, data)
            if self._held <= BYTES and not self._queue.full():
                self._queue.put_nowait((peer, bytes(data)))
                data.clear()  # held on, by the queue
            else:
                self._drop(peer)
        finally:
            self._held -= len(data)
            self._open.discard(task)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, data: bytearray) -> None:
        """All bytes of a connection up to its end, its deadline or the limit, or until there is no room for them."""
        end = time.monotonic() + SECONDS
        while len(data) < MESSAGE_LIMIT and self._held <= BYTES and (left := end - time.monotonic()) > 0:
            try:
                piece = await asyncio.wait_for(reader.read(MESSAGE_LIMIT - len(data)), min(SILENCE, left))
            except (TimeoutError, OSError):
                break
            if not piece:
                break
            data += piece
            self._held += len(piece)

    def _drop(self, peer: str) -> None:
        if count := self._seldom.count():
            _log.warning("messages dropped, for too many come at once: %d, the last from %s", count, peer)

    async def _enter(self) -> None:
        while True:
            peer, data = await self._queue.get()
            try:
                await asyncio.to_thread(self._deliver, peer, data)
            except FlopsError as error:  # the database is busy or full
                _log.warning("a message from %s is lost: %s", peer, error.message)
            finally:
                self._held -= len(data)
                self._queue.task_done()

    def _deliver(self, peer: str, data: bytes) -> None:
        text = visible(data.decode("utf-8", "replace")).strip()
        if not text:
            return
        found = addressees(self._manager, text)
        for project in found:
            self._manager.note(project, text)
        if not found:
            _log.info("a message from %s for no project: %s", peer, text[:500].replace("\n", "\\n"))


@contextmanager
def inbox(manager: Notes, host: str, port: int) -> Iterator[tuple[Inbox, int]]:
    """An inbox with a thread and a loop of its own, and its port. BadSetting where that is taken."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="inbox", daemon=True)
    thread.start()
    kept = Inbox(manager)
    try:
        listening = asyncio.run_coroutine_threadsafe(kept.start(host, port), loop).result()
        try:
            yield kept, listening
        finally:
            asyncio.run_coroutine_threadsafe(kept.close(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def addressees(manager: Notes, text: str) -> tuple[str, ...]:
    """The projects that a message is for, by what it says and by what is under way."""
    named = []
    for id_ in dict.fromkeys(ID.findall(text)):
        with contextlib.suppress(ProjectNotFound):
            named.append(manager.project(id_).id)
    if named:
        return tuple(named[:1])
    under_way = [
        project
        for state in (State.BUILDING, State.ACCEPTED)
        for project in manager.projects(limit=2, state=state).projects
    ]
    if under_way:
        return (under_way[0].id,) if len(under_way) == 1 else ()
    ready = manager.projects(limit=1, state=State.IMAGES_READY).projects
    recent = [one for one in ready if one.ended is not None and time.time() - one.ended < TRAINING_SECONDS]
    return tuple(project.id for project in recent)
