"""When a request to a registry is tried again, and after how long."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

from flops.errors import Cancelled

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    import httpx

    from flops.errors import FlopsError

T = TypeVar("T")

#: Answers that another try may change; beside them only 408, 429 and connections that broke.
_LASTING = {501, 505, 507}


class Transient(Exception):
    """A try that failed in a way that another one may not; `failure` is raised when there is none left."""

    def __init__(
        self, failure: FlopsError, *, after: float | None = None, tries: int | None = None, status: int | None = None
    ) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.status = status
        """Of the answer, where there was one."""
        self.progressed = False
        """The try before it brought something further: it does not count."""
        self.after = after
        """Seconds that the registry asked for (Retry-After)."""
        self.tries = tries
        """A smaller number of tries in all, where more would only make its user wait."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Tries with pauses that double and are spread at random (0.5 to 1.5 times), so that clients don't return at once."""

    tries: int = 6
    first: float = 0.25
    """Seconds before the second try."""
    longest: float = 30.0
    """The longest pause in seconds, also where the registry asks for more."""
    unanswered: int = 3
    """Tries at a registry that never answered: it is most likely not there, and its user waits."""
    sleep: Callable[[float], None] | None = None
    """None: really, and no longer than until the transfer is stopped."""
    spread: Callable[[], float] = lambda: random.uniform(0.5, 1.5)  # noqa: S311 - no secret

    def run(self, operation: Callable[[], T], *, stop: threading.Event | None = None) -> T:
        """Call until it returns, raises something else than Transient, or has no try left; Cancelled once stopped."""
        number = 0
        while stop is None or not stop.is_set():
            try:
                return operation()
            except Transient as transient:
                number = 1 if transient.progressed else number + 1
                if number >= min(self.tries, transient.tries or self.tries):
                    raise transient.failure from transient.__cause__
                self._pause(number, transient.after, stop)
        raise Cancelled("the transfer was stopped")

    def _pause(self, number: int, after: float | None, stop: threading.Event | None) -> None:
        pause = min(self.longest, self.first * 2 ** (number - 1) * self.spread())
        seconds = max(pause, min(after, self.longest)) if after is not None else pause
        if self.sleep is not None:
            self.sleep(seconds)
        elif stop is not None:
            stop.wait(seconds)
        else:
            time.sleep(seconds)


def is_transient(status: int) -> bool:
    """By RFC 9110 and 6585: 408, 429 and the server's own failures."""
    return status in {408, 429} or (status >= 500 and status not in _LASTING)  # noqa: PLR2004


def retry_after(response: httpx.Response) -> float | None:
    """Seconds, from a number or a date (RFC 9110, 10.2.3); None where there is none that can be read."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # numbers of any length
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
