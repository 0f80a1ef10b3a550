"""How many requests run at the same time: more while a registry keeps up, fewer at once where it does not."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

from flops.http import Transient

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds that a request waits for its turn at most: its turn may depend on what its own thread holds elsewhere.
_PATIENCE = 60.0
#: Answers of registries that have too much to do.
OVERLOADED = {408, 429, 503, 504}


class Pressure:
    """Additive increase, multiplicative decrease, as in TCP: one more for each round of successes, half after an overload.

    From any thread; a thread that has a turn already takes no second one.
    """

    def __init__(self, *, start: int, most: int) -> None:
        self.limit = float(min(start, most))
        """Requests at the same time, rounded down."""
        self._most = most
        self._running = 0
        self._cuts = 0
        self._turn = threading.Condition()
        self._held = threading.local()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn and have it; what is raised in it, or is not, moves the limit."""
        if getattr(self._held, "depth", 0):
            yield
            return
        with self._turn:
            self._turn.wait_for(lambda: self._running < int(self.limit), _PATIENCE)
            self._running += 1
            cuts = self._cuts
        self._held.depth = 1
        try:
            yield
        except Transient as transient:
            if _is_overload(transient):
                self._decrease(cuts)
            raise
        else:
            self._increase()
        finally:
            self._held.depth = 0
            with self._turn:
                self._running -= 1
                self._turn.notify_all()

    def _increase(self) -> None:
        with self._turn:
            self.limit = min(float(self._most), self.limit + 1 / self.limit)

    def _decrease(self, cuts: int) -> None:
        """Once for all requests that were under way together: they tell of one overload."""
        with self._turn:
            if cuts == self._cuts:
                self.limit = max(1.0, self.limit / 2)
                self._cuts += 1


def _is_overload(transient: Transient) -> bool:
    return transient.status in OVERLOADED or isinstance(transient.__cause__, httpx.TimeoutException)
