"""The folded feeds of the projects that are being looked at: each event is read and folded once, whoever looks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from flops.observer.feed import Feed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")
_KEPT = 64
_BATCH = 500


class Projects(Protocol):
    """What the pages need of whoever keeps the projects; documents as the HTTP API shows them. FlopsError."""

    def page(self, *, limit: int, offset: int, state: str | None, text: str) -> tuple[list[Mapping[str, Any]], int]:
        """Projects, newest first, and how many there are in all."""

    def show(self, project: str) -> Mapping[str, Any]: ...

    def events(self, project: str, *, after: int, limit: int) -> list[dict[str, Any]]: ...

    def cancel(self, project: str) -> Mapping[str, Any]: ...

    def again(self, project: str) -> Mapping[str, Any]:
        """A new project that asks for the same, built whatever stands already."""


class Shelf:
    """Thread-safe; `read` gives what `use` makes of a project's feed, brought up to date first."""

    def __init__(self, projects: Projects) -> None:
        self._projects = projects
        self._guard = threading.Lock()
        self._feeds: OrderedDict[str, tuple[threading.Lock, Feed]] = OrderedDict()

    def read(self, project: str, use: Callable[[Feed], T]) -> T:
        """ProjectNotFound."""
        with self._guard:
            lock, feed = self._feeds.setdefault(project, (threading.Lock(), Feed()))
            self._feeds.move_to_end(project)
            while len(self._feeds) > _KEPT:
                self._feeds.popitem(last=False)
        with lock:
            while True:
                events = self._projects.events(project, after=feed.last, limit=_BATCH)
                feed.add(events)
                if len(events) < _BATCH:
                    return use(feed)
