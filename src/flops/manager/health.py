"""How the service is: each part is asked, briefly remembered, and told by name."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooSlow
from typing import TYPE_CHECKING

from flops.errors import FlopsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Seconds that an answer is good for: probes come often, and from anybody.
_FRESH = 3.0
_PATIENCE = 5.0


class Health:
    """`checks` by name; one thread asks them, however many want to know."""

    def __init__(self, checks: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.monotonic) -> None:
        self._checks = dict(checks)
        self._clock = clock
        self._guard = threading.Lock()
        self._until = float("-inf")
        self._told: dict[str, str] = {}

    def look(self) -> dict[str, str]:
        """By part: `ok`, or what is wrong."""
        with self._guard:
            if self._clock() >= self._until:
                self._told = self._ask()
                self._until = self._clock() + _FRESH
            return dict(self._told)

    def _ask(self) -> dict[str, str]:
        """At once, and none is waited for longer than the others."""
        pool = ThreadPoolExecutor(max_workers=max(1, len(self._checks)), thread_name_prefix="flops-health")
        try:
            asked = {name: pool.submit(check) for name, check in self._checks.items()}
            told = {}
            until = time.monotonic() + _PATIENCE
            for name, future in asked.items():
                try:
                    future.result(max(0.0, until - time.monotonic()))
                    told[name] = "ok"
                except TooSlow:
                    told[name] = f"no answer within {_PATIENCE:.0f} s"
                except FlopsError as error:
                    told[name] = f"{error.code}: {error.message}"
                except Exception as error:  # noqa: BLE001 - a part that fails in a new way is not well either
                    told[name] = type(error).__name__
            return told
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
