"""Writers of one database in the order in which they came, and what several of them commit together."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from flops.errors import FlopsError


class Turns:
    """A lock that is passed on in order; `threading.Lock` lets whoever is quick overtake. As a context: one turn.

    Who is interrupted while waiting still gets its turn, for `left` alone: whoever went before may count on it.
    """

    def __init__(self, left: Callable[[], None] = lambda: None) -> None:
        self._left = left
        self._guard = threading.Lock()
        self._queue: deque[threading.Event] = deque()
        self._taken = False

    @property
    def waiting(self) -> int:
        """How many want a turn."""
        return len(self._queue)

    def __enter__(self) -> Self:
        with self._guard:
            if not self._taken:
                self._taken = True
                return self
            turn = threading.Event()
            self._queue.append(turn)
        try:
            turn.wait()
        except BaseException:
            turn.wait()
            try:
                self._left()
            finally:
                self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._queue:
                self._queue.popleft().set()
            else:
                self._taken = False


@dataclass(kw_only=True)
class Group:
    """Entries of writers that waited for each other: one transaction, one wait for the disk."""

    size: int = 0
    after: list[Callable[[], None]] = field(default_factory=list)
    """To be called when all is on the disk, in order."""
    error: FlopsError | None = None
    """Why nothing of it is."""
    done: threading.Event = field(default_factory=threading.Event)

    def end(self, error: FlopsError | None = None) -> None:
        self.error = error
        self.done.set()
