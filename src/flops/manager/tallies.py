"""How often things happened since the manager began: for its metrics."""

from __future__ import annotations

import threading
from collections import Counter

NAMES = ("events", "events_dropped", "notes", "notes_dropped", "mirror_dropped", "logins_failed")


class Tallies:
    """Thread-safe; every name of NAMES is there from the beginning."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._counts = Counter(dict.fromkeys(NAMES, 0))

    def add(self, name: str, count: int = 1) -> None:
        with self._guard:
            self._counts[name] += count

    def counts(self) -> dict[str, int]:
        with self._guard:
            return dict(self._counts)
