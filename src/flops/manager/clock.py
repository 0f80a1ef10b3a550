"""The manager's two clocks: one for dates and ages, one for pauses."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch: what the database holds and deadlines count by, across restarts."""

    def monotonic(self) -> float:
        """Seconds that nobody sets back: what pauses count by."""


class SystemClock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()
