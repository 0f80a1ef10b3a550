"""How long viewers are to let events gather, so that many of them cost the manager no more than a few."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Sent with the parts of a page, in milliseconds.
HEADER = "Flops-Settle"
_LEAST, _MOST = 0.15, 10.0
#: Seconds of pause for each request a second: 200 viewers then ask less than a hundred times a second altogether.
_WEIGHT = 0.02
#: Seconds over which requests are counted.
_MEMORY = 2.0


class Pace:
    """Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._rate = 0.0
        self._last = clock()

    def step(self) -> int:
        """One more request; the milliseconds until its sender is to ask again, at the earliest."""
        with self._guard:
            now = self._clock()
            self._rate = self._rate * math.exp((self._last - now) / _MEMORY) + 1 / _MEMORY
            self._last = now
            return round(min(_MOST, _LEAST + _WEIGHT * self._rate) * 1000)
