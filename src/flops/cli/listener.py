"""An MQTT broker that is listened to: what comes on some topics, through broken connections."""

from __future__ import annotations

import queue
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from flops.errors import BrokerUnreachable
from flops.http import reason, trust

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from flops.broker import BrokerAddress

#: Messages that wait to be shown; beyond them the newest are lost, never the broker's patience.
_WAITING = 10_000


@dataclass(frozen=True, kw_only=True)
class Message:
    topic: str
    payload: bytes
    repeated: bool
    """Kept by the broker for who comes late, or sent again since its acknowledgement was lost."""


class Listener:
    """Use as a context manager; BrokerUnreachable where the first connection fails. Later ones are tried for ever."""

    def __init__(
        self,
        address: BrokerAddress,
        topics: Sequence[str],
        *,
        lost: Callable[[str], None],
        back: Callable[[], None],
        ca_bundle: Path | None = None,
        seconds: float = 10.0,
    ) -> None:
        self._address = address
        self._topics = [(topic, 1) for topic in topics]
        self._lost, self._back = lost, back
        self._ca_bundle = ca_bundle
        self._seconds = seconds
        self._messages: queue.Queue[Message] = queue.Queue(_WAITING)
        self._answers: queue.Queue[str] = queue.Queue()
        self._listening = self._was_lost = False
        self._client: Any = None

    def __enter__(self) -> Self:
        from paho.mqtt.client import Client  # noqa: PLC0415 - needed only where there is a broker
        from paho.mqtt.enums import CallbackAPIVersion  # noqa: PLC0415

        client = self._client = Client(CallbackAPIVersion.VERSION2)
        client.on_connect, client.on_disconnect = self._connected, self._disconnected
        client.on_message, client.on_subscribe = self._heard, self._subscribed
        client.connect_timeout = self._seconds
        client.reconnect_delay_set(1, 5)
        if self._address.username is not None:
            client.username_pw_set(self._address.username, self._address.password)
        try:
            if self._address.tls:
                client.tls_set_context(trust(self._ca_bundle))
            client.connect(self._address.host, self._address.port, keepalive=30)
        except (OSError, ValueError) as error:
            raise self._unreachable(*reason(error, str(self._address))) from error
        client.loop_start()
        try:
            refused = self._answers.get(timeout=self._seconds)
        except queue.Empty:
            refused = "it does not answer"
        except BaseException:
            self.__exit__()
            raise
        if refused:
            self.__exit__()
            raise self._unreachable(refused)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def next(self, seconds: float) -> Message | None:
        """The next message, or None after so many seconds without one."""
        try:
            return self._messages.get(timeout=seconds)
        except queue.Empty:
            return None

    # --- paho's network thread ---
    def _connected(self, client: Any, _data: object, _flags: object, reason: Any, _properties: object) -> None:
        if reason.is_failure:
            self._answers.put(f"it refuses us: {reason}")
        else:
            client.subscribe(self._topics)

    def _subscribed(
        self, _client: object, _data: object, _number: object, reasons: Sequence[Any], _properties: object
    ) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        self._answers.put(f"it does not let us listen: {refused[0]}" if refused else "")
        self._listening = not refused
        if self._listening and self._was_lost:
            self._was_lost = False
            self._back()

    def _disconnected(self, _client: object, _data: object, _flags: object, reason: Any, _properties: object) -> None:
        if self._listening and reason.is_failure:
            self._listening, self._was_lost = False, True
            self._lost(str(reason))

    def _heard(self, _client: object, _data: object, message: Any) -> None:
        heard = Message(topic=message.topic, payload=message.payload, repeated=bool(message.retain or message.dup))
        try:
            self._messages.put_nowait(heard)
        except queue.Full:
            self._lost("messages come faster than they are shown")

    def _unreachable(self, why: str, hint: str = "") -> BrokerUnreachable:
        return BrokerUnreachable(
            f"the broker at {self._address} can't be listened to: {why[:300]}",
            hint=hint or "check that it runs and that its address, user and password are right",
        )
