"""FLOps' messages from a builder that our manager does not know: MQTT to its manager, TCP to its observer.

Each has a queue and a thread of its own, so that one that is unreachable delays neither the build nor the other.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Self

from flops.compat.broker import Publisher
from flops.errors import BrokerUnreachable
from flops_wire.flops import TEXT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flops.compat.broker import BrokerAddress

#: For one connection to the observer; after so many failures in a row nobody is told any more.
OBSERVER_SECONDS = 3.0
OBSERVER_TRIES = 3
#: For what is left at the end: texts for people, and the outcome that FLOps' manager waits for.
LAST_TEXTS_SECONDS = 5.0
OUTCOME_SECONDS = 20.0
#: Between two tries at a broker.
PAUSE = 0.5

log = logging.getLogger("flops.job")


class Announcer:
    """Use as a context; None stands for nobody to be told. At its end nothing is waited for: see `outcome`."""

    def __init__(self, *, broker: BrokerAddress | None, observer: tuple[str, int] | None) -> None:
        self._broker = broker
        self._observer = observer
        self._ended = threading.Event()
        self._messages: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._texts: SimpleQueue[str] = SimpleQueue()
        self._left = {"messages": 0, "texts": 0}
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work, where in (("broker", self._publish, broker), ("observer", self._send, observer))
            if where is not None
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def manager(self, topic: str, payload: Mapping[str, Any]) -> None:
        """A message for FLOps' manager: in order, tried until it was acknowledged."""
        if self._broker is not None:
            self._count("messages", 1)
            self._messages.put((topic, json.dumps(payload)))

    def observer(self, text: str) -> None:
        """A text for the project's observer: one connection each, in order."""
        if self._observer is not None:
            self._count("texts", 1)
            self._texts.put(text)

    def outcome(self, topic: str, payload: Mapping[str, Any]) -> bool:
        """The last message, after all texts: FLOps' manager removes a builder as soon as it hears of its end.

        Whether it was acknowledged (or nobody is to be told).
        """
        self._wait("texts", LAST_TEXTS_SECONDS)
        self.manager(topic, payload)
        return self._wait("messages", OUTCOME_SECONDS)

    def _count(self, what: str, change: int) -> None:
        with self._changed:
            self._left[what] += change
            self._changed.notify_all()

    def _wait(self, what: str, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._left[what], timeout=seconds)

    def _each(self, queue: SimpleQueue[Any], what: str, action: Callable[[Any], None]) -> None:
        while not self._ended.is_set():
            try:
                one = queue.get(timeout=0.5)
            except Empty:
                continue
            action(one)
            self._count(what, -1)

    def _publish(self) -> None:
        where = self._broker
        if where is None:
            return
        with Publisher(where) as publisher:

            def publish(message: tuple[str, str]) -> None:
                warned = False
                while not self._ended.is_set():
                    try:
                        publisher.publish(*message)
                    except BrokerUnreachable as error:
                        if not warned:
                            log.warning("%s", error.message)
                        warned = True
                        self._ended.wait(PAUSE)
                    else:
                        return

            self._each(self._messages, "messages", publish)

    def _send(self) -> None:
        where, failures = self._observer, 0
        if where is None:
            return

        def send(text: str) -> None:
            nonlocal failures
            if failures >= OBSERVER_TRIES:
                return
            try:
                with socket.create_connection(where, timeout=OBSERVER_SECONDS) as connection:
                    connection.sendall(text[:TEXT_LIMIT].encode("utf-8", "backslashreplace"))
                failures = 0
            except OSError as error:
                failures += 1
                log.warning("the observer at %s:%s was not told: %s", *where, error)

        self._each(self._texts, "texts", send)
