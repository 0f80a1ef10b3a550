"""FLOps' messages from an actor: MQTT to the manager, TCP to the observer. Their failure never fails the training."""

from __future__ import annotations

import json
import logging
import socket
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from flops_actor.arguments import Endpoint

#: For one connection, and for one acknowledgement.
SECONDS = 10.0
#: For all that is left at the end.
CLOSE_SECONDS = 45.0
#: Characters of an error that a message carries.
TEXT_LIMIT = 8000

log = logging.getLogger("flops.actor")


class Notifier:
    """Sends in the order of the calls, in a thread of its own, so that an unreachable broker delays no training.

    Leaving the context waits until everything was sent or given up; an actor that is being stopped does not wait.
    """

    def __init__(self, *, broker: Endpoint | None, observer: Endpoint | None) -> None:
        self._broker = broker
        self._observer = observer
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="notify", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._queue.put(None)
        if kind is None or issubclass(kind, Exception):
            self._thread.join(timeout=CLOSE_SECONDS)

    def manager(self, topic: str, payload: Mapping[str, Any]) -> None:
        """One message to FLOps' manager: quality of service 1, awaited acknowledgement."""
        where = self._broker
        if where is not None:
            self._queue.put(lambda: _guarded("manager", where, lambda: _publish(where, topic, json.dumps(payload))))

    def observer(self, text: str) -> None:
        """One line (or more) of text in the project's observer."""
        where = self._observer
        if where is not None:
            self._queue.put(lambda: _guarded("observer", where, lambda: _send(where, text)))

    def _work(self) -> None:
        while (action := self._queue.get()) is not None:
            action()


def _guarded(whom: str, where: Endpoint, action: Callable[[], None]) -> None:
    try:
        action()
    except Exception as error:  # noqa: BLE001 - whatever it is, training goes on
        log.warning("the %s at %s was not told: %s: %s", whom, where, type(error).__name__, error)


def _publish(where: Endpoint, topic: str, payload: str) -> None:
    from paho.mqtt import client as mqtt  # noqa: PLC0415 - needed only where there is a broker
    from paho.mqtt.enums import CallbackAPIVersion  # noqa: PLC0415

    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.connect_timeout = SECONDS
    client.connect(where.host, where.port)
    client.loop_start()
    try:
        sent = client.publish(topic, payload, qos=1)
        sent.wait_for_publish(timeout=SECONDS)
        if not sent.is_published():
            raise TimeoutError(f"no acknowledgement of {topic} within {SECONDS:.0f} s")
    finally:
        client.disconnect()
        client.loop_stop()


def _send(where: Endpoint, text: str) -> None:
    with socket.create_connection((where.host, where.port), timeout=SECONDS) as connection:
        connection.sendall(text[:TEXT_LIMIT].encode())
