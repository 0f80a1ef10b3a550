"""An MQTT broker to publish to: quality of service 1, every message's acknowledgement awaited, in order."""

from __future__ import annotations

import queue
import re
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

from flops.errors import BadSetting, BrokerUnreachable
from flops.http import reason, trust

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from paho.mqtt.client import Client, MQTTMessageInfo


#: MQTT over TLS, by the register of ports.
TLS_PORT = 8883
#: Seconds between signs of life: after one and a half of these each side gives a silent connection up.
KEEPALIVE = 30
FORMS = "write [mqtt[s]://][USER:PASSWORD@]HOST[:PORT]"


@dataclass(frozen=True, kw_only=True)
class BrokerAddress:
    """Where a broker is, and who we are there."""

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str, *, port: int) -> BrokerAddress:
        """Read `[mqtt[s]://][USER:PASSWORD@]HOST[:PORT]`; `port` counts where none stands there. BadSetting.

        An IPv6 address needs no brackets where no port follows.
        """
        scheme, separator, rest = text.strip().rpartition("://")
        user, _, place = rest.rpartition("@")
        if scheme not in ("mqtt", "mqtts", "") or (separator and not scheme):
            raise BadSetting("the broker's address has another scheme than mqtt:// or mqtts://", hint=FORMS)
        if place.count(":") > 1 and not place.startswith("["):
            place = f"[{place}]"
        try:
            parts = urlsplit(f"//{place}")
            host, given = parts.hostname or "", parts.port
        except ValueError:
            host, given = "", None
        if _more(place) or not re.fullmatch(r"[A-Za-z0-9_.:%-]+", host) or given == 0:
            raise BadSetting("the broker's address names no host and port", hint=FORMS)
        name, colon, password = user.partition(":")
        return cls(
            host=host,
            port=given or (TLS_PORT if scheme == "mqtts" else port),
            tls=scheme == "mqtts",
            username=unquote(name) if user else None,
            password=unquote(password) if colon else None,
        )

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _more(place: str) -> bool:
    """A path, a query or a fragment after the host."""
    return re.search(r"[/?#\s\\]", place) is not None


class Publisher:
    """Publishes from one thread at a time; connects when there is something to publish, and again after a failure.

    After a failure nothing of the failed message is kept: the caller publishes it again, so the order stays its own.
    """

    def __init__(self, address: BrokerAddress, *, ca_bundle: Path | None = None, seconds: float = 10.0) -> None:
        self.address = address
        self._ca_bundle = ca_bundle
        self._seconds = seconds
        self._client: Client | None = None
        self._lost = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def publish(self, topic: str, payload: str, *, retain: bool = False) -> None:
        """Returns once the broker has acknowledged the message; BrokerUnreachable within twice `seconds` otherwise."""
        if self._lost.is_set():
            self.close()
        try:
            client = self._client or self._connect()
            self._wait(client.publish(topic, payload.encode(), qos=1, retain=retain))
        except BrokerUnreachable:
            self.close()
            raise
        except (OSError, ValueError, RuntimeError) as error:
            self.close()
            raise self._unreachable(*reason(error, str(self.address))) from error

    def close(self) -> None:
        """Say good-bye and stop the network thread; `publish` connects anew."""
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()

    def _connect(self) -> Client:
        from paho.mqtt.client import Client  # noqa: PLC0415 - needed only where there is a broker
        from paho.mqtt.enums import CallbackAPIVersion  # noqa: PLC0415

        answered, refusals = threading.Event(), list[str]()
        lost = self._lost = threading.Event()

        def on_connect(_client: object, _data: object, _flags: object, reason: object, _properties: object) -> None:
            if getattr(reason, "is_failure", False):
                refusals.append(str(reason))
            answered.set()

        client = Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        client.on_connect = on_connect
        client.on_disconnect = lambda *_: lost.set()
        client.connect_timeout = self._seconds
        if self.address.username is not None:
            client.username_pw_set(self.address.username, self.address.password)
        if self.address.tls:
            client.tls_set_context(trust(self._ca_bundle))
        client.connect(self.address.host, self.address.port, keepalive=KEEPALIVE)
        self._client = client
        client.loop_start()
        end = time.monotonic() + self._seconds
        while not answered.wait(0.05) and not lost.is_set() and time.monotonic() < end:
            pass
        if refusals:
            raise self._unreachable(f"it refuses us: {refusals[0]}")
        if not answered.is_set():
            raise self._unreachable("it accepts connections and does not speak MQTT")
        return client

    def _wait(self, sent: MQTTMessageInfo) -> None:
        end = time.monotonic() + self._seconds
        while not sent.is_published():
            if self._lost.is_set():
                raise self._unreachable("the connection broke before it acknowledged a message")
            if time.monotonic() > end:
                raise self._unreachable(f"no acknowledgement within {self._seconds:.0f} s")
            sent.wait_for_publish(timeout=0.2)

    def _unreachable(self, why: str, hint: str = "") -> BrokerUnreachable:
        return BrokerUnreachable(
            f"the broker at {self.address} can't be published to: {why}",
            hint=hint or "check that it runs and that its address, user and password are right",
        )


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
