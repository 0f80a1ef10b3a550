"""The folded feeds of the projects that are being looked at, and what was drawn of them: each event is read and folded
once, and each state drawn once, whoever looks.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol

from flops.observer.feed import Feed

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

_KEPT = 64
#: Drawings of one state: viewers that come from different places in the log.
_DRAWN = 16
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


class _Kept:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.feed = Feed()
        self.drawn: dict[Hashable, str] = {}


class FeedCache:
    """Thread-safe."""

    def __init__(self, projects: Projects) -> None:
        self._projects = projects
        self._guard = threading.Lock()
        self._feeds: OrderedDict[str, _Kept] = OrderedDict()

    def draw(self, project: str, key: Hashable | None, draw: Callable[[Feed], str]) -> str:
        """What `draw` makes of a project's feed, brought up to date first; the same text for the same `key` as long as no
        event has come since. None is never the same. ProjectNotFound.
        """
        kept = self._kept(project)
        with kept.lock:
            self._update(project, kept)
            found = kept.drawn.get(key) if key is not None else None
            if found is None:
                found = draw(kept.feed)
                if key is not None:
                    if len(kept.drawn) >= _DRAWN:
                        kept.drawn.clear()
                    kept.drawn[key] = found
            return found

    def _kept(self, project: str) -> _Kept:
        with self._guard:
            kept = self._feeds.setdefault(project, _Kept())
            self._feeds.move_to_end(project)
            while len(self._feeds) > _KEPT:
                self._feeds.popitem(last=False)
            return kept

    def _update(self, project: str, kept: _Kept) -> None:
        while True:
            events = self._projects.events(project, after=kept.feed.last, limit=_BATCH)
            if events:
                kept.feed.add(events)
                kept.drawn.clear()
            if len(events) < _BATCH:
                return
