"""Failed logins: an address has a few, then each further one makes it wait before a token of it is judged again."""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("flops.http")
#: Failures without a pause; the longest pause in seconds; seconds after a pause in which all failures are forgotten.
FREE, LONGEST, FORGOTTEN = 5, 60.0, 600.0
#: Addresses with failures, and logins that were right, that are remembered; the oldest go.
REMEMBERED = 10_000


class Throttle:
    """For tokens `of` one thing. Thread-safe.

    A token that was right before from its address is judged at once, so whoever shares an address with somebody who guesses
    stays logged in.
    """

    def __init__(self, of: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.on_failure: Callable[[], None] = lambda: None
        self._of = of
        self._clock = clock
        self._guard = threading.Lock()
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()  # how many, and when the pause ends
        self._right: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def wait(self, address: str, token: str) -> int:
        """Seconds until a token from there is judged; 0 where it may be now."""
        with self._guard:
            count, until = self._failures.get(address, (0, 0.0))
            left = until - self._clock()
            if count and left < -FORGOTTEN:
                del self._failures[address]
            return 0 if (address, _digest(token)) in self._right else max(0, math.ceil(left))

    def failed(self, address: str) -> None:
        """A wrong token came from there."""
        with self._guard:
            count = self._failures.get(address, (0, 0.0))[0] + 1
            seconds = min(LONGEST, 2.0 ** min(count - FREE, 16)) if count >= FREE else 0.0
            _remember(self._failures, address, (count, self._clock() + seconds))
        self.on_failure()
        if count <= FREE or count % 100 == 0:
            _log.warning("a login failed: a wrong token of %s from %s, its failure %d", self._of, address, count)

    def passed(self, address: str, token: str) -> None:
        """It was the right one."""
        with self._guard:
            self._failures.pop(address, None)
            _remember(self._right, (address, _digest(token)), None)


class Seldom:
    """Lets a line through once a minute, with how often there would have been one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._count, self._since = 0, float("-inf")

    def count(self) -> int:
        """One more: 0, or how many since the last line."""
        self._count += 1
        if self._clock() - self._since < 60:  # noqa: PLR2004
            return 0
        count, self._count, self._since = self._count, 0, self._clock()
        return count


def _remember(kept: OrderedDict[Any, Any], key: object, value: object) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > REMEMBERED:
        kept.popitem(last=False)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
