"""What is put out for FLOps' components goes to their broker: in order, at least once, and never in a project's way.

A message leaves the outbox only after the broker acknowledged it, so a broker that is down delays the mirror alone; a
manager that dies in between sends one message twice. What waits has a bound: beyond it, messages on the way are dropped,
whole projects at a time, the oldest first, and outcomes are kept.
"""

from __future__ import annotations

import logging
import random
import threading
from typing import TYPE_CHECKING, Protocol

from flops.errors import BrokerUnreachable, FlopsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flops.broker import Publisher
    from flops.manager.rows import OutboxRow

#: Messages that are read at once.
BATCH = 100
#: Messages that may wait.
BACKLOG = 10_000
#: Seconds between two looks at an outbox that was empty.
POLL = 0.5
#: The first and the longest pause after a failure, in seconds.
FIRST, LONGEST = 0.5, 30.0
#: For the message that is under way at the end; a broker that hangs is not waited for.
CLOSE_SECONDS = 5.0

_log = logging.getLogger("flops.manager.mirror")


class Outbox(Protocol):
    """Where messages wait; the manager's store."""

    def outbox_next(self, limit: int) -> Sequence[OutboxRow]:
        """The oldest messages, in order."""

    def outbox_done(self, number: int) -> None:
        """This message was acknowledged."""

    def outbox_trim(self, limit: int) -> int:
        """Drop what is beyond so many messages; how many were dropped."""


class Mirror:
    """One thread between `start` and `close`. Constructing it connects to nothing."""

    def __init__(
        self,
        outbox: Outbox,
        publisher: Publisher,
        *,
        backlog: int = BACKLOG,
        dropped: Callable[[int], None] = lambda _count: None,
    ) -> None:
        """`dropped` is told how many messages were dropped, whenever some were."""
        self._outbox = outbox
        self._publisher = publisher
        self._backlog = backlog
        self._dropped = dropped
        self._dropping = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._failures = 0

    @property
    def connected(self) -> bool:
        """The last message that was tried was acknowledged (or there was none yet)."""
        return self._failures == 0

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends after the message that is under way; what waits then waits for the next start."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=CLOSE_SECONDS)

    def _work(self) -> None:
        with self._publisher:
            while not self._stop.is_set():
                try:
                    self._trim()
                    rows = self._outbox.outbox_next(BATCH)
                    for row in rows:
                        self._publish(row)
                        if self._stop.is_set():
                            return
                except FlopsError as error:
                    self._failed(error)
                else:
                    if not rows:
                        self._dropping = False
                        self._stop.wait(POLL)

    def _trim(self) -> None:
        """Told once until nothing waits any more."""
        count = self._outbox.outbox_trim(self._backlog)
        if not count:
            return
        self._dropped(count)
        if not self._dropping:
            _log.warning(
                "more than %d messages wait for the broker at %s: those of the oldest projects are dropped, save outcomes",
                self._backlog,
                self._publisher.address,
            )
        self._dropping = True

    def _publish(self, row: OutboxRow) -> None:
        self._publisher.publish(row.topic, row.payload, retain=row.retained)
        if self._failures:
            _log.info("the broker at %s takes messages again", self._publisher.address)
        self._failures = 0
        self._outbox.outbox_done(row.number)

    def _failed(self, error: FlopsError) -> None:
        """Told once per outage; the pauses grow."""
        if not self._failures:
            where = "" if isinstance(error, BrokerUnreachable) else "the mirror can't go on: "
            _log.warning("%s%s", where, error.message)
        self._failures += 1
        pause = min(LONGEST, FIRST * 2 ** min(self._failures - 1, 10))
        self._stop.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
