"""Live events to whoever watches: a bounded queue for each reader, which is never waited for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from flops.service.project import Project

_log = logging.getLogger("flops.service")
#: Events that a reader may be behind before it has to read from the store.
QUEUE = 256
#: Stored events that are read at once.
PAGE = 200

Event = dict[str, Any]


class Bus:
    """Fans events out. `publish` never blocks, so that it can be called where the order is settled: under the store's lock."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._readers: defaultdict[str, set[Subscription]] = defaultdict(set)
        self._listeners: list[Callable[[Project, Event], None]] = []

    def listen(self, listener: Callable[[Project, Event], None]) -> None:
        """Have every event that was stored told, with the project as it is then; it must not block and must not raise."""
        self._listeners.append(listener)

    def publish(self, project: Project, event: Event) -> None:
        """Tell a stored event (with its sequence)."""
        for listener in self._listeners:
            try:
                listener(project, event)
            except Exception:  # noqa: BLE001 - what was committed stays told to all the others
                _log.exception("a listener failed")
        self.broadcast(project.id, event)

    def broadcast(self, project: str, event: Event) -> None:
        """Tell an event to the project's readers; progress is told so and nowhere stored."""
        with self._guard:
            readers = list(self._readers.get(project, ()))
        for reader in readers:
            reader.offer(event)

    def subscribe(self, project: str, *, after: int, stored: Callable[[str, int, int], list[Event]]) -> Subscription:
        return Subscription(self, project, after=after, stored=stored)

    @property
    def readers(self) -> int:
        with self._guard:
            return sum(map(len, self._readers.values()))

    def add(self, subscription: Subscription) -> None:
        with self._guard:
            self._readers[subscription.project].add(subscription)

    def drop(self, subscription: Subscription) -> None:
        with self._guard:
            left = self._readers.get(subscription.project)
            if left is not None:
                left.discard(subscription)
                if not left:
                    del self._readers[subscription.project]


class Subscription:
    """A reader's own view of a project: every stored event after `after` once and in order, and progress while it keeps up.

    `with manager.subscribe(id, after=N) as events: async for event in events: ...`; it does not end by itself. It costs
    no thread; only to catch up, it reads from the store in one.
    """

    def __init__(self, bus: Bus, project: str, *, after: int, stored: Callable[[str, int, int], list[Event]]) -> None:
        self.project = project
        self._bus = bus
        self._stored = stored
        self._seen = after
        self._behind = True  # what was stored before we were told of anything
        self._queue: deque[Event] = deque()
        self._guard = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()

    def __enter__(self) -> Self:
        self._bus.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._bus.drop(self)

    def offer(self, event: Event) -> None:
        """From any thread. A full queue loses progress; of stored events it remembers only that there are some."""
        with self._guard:
            if len(self._queue) >= QUEUE:
                self._queue.clear()
                self._behind = True
            elif not (self._behind and event.get("sequence") is not None):
                self._queue.append(event)
            loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # its loop has ended, and with it the reader
                loop.call_soon_threadsafe(self._news.set)

    async def __aiter__(self) -> AsyncIterator[Event]:
        with self._guard:
            self._loop = asyncio.get_running_loop()
        while True:
            self._news.clear()
            with self._guard:
                behind, self._behind = self._behind, False
                events = list(self._queue)
                self._queue.clear()
            if behind:
                async for event in self._catch_up():
                    yield event
            for event in events:
                if self._is_new(event):
                    yield event
            if not events and not behind:
                await self._news.wait()

    async def _catch_up(self) -> AsyncIterator[Event]:
        while page := await asyncio.to_thread(self._stored, self.project, self._seen, PAGE):
            for event in page:
                if self._is_new(event):
                    yield event

    def _is_new(self, event: Event) -> bool:
        sequence = event.get("sequence")
        if sequence is None:
            return True
        if sequence <= self._seen:
            return False
        self._seen = sequence
        return True
