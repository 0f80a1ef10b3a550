"""An MQTT broker to publish to: quality of service 1, every message's acknowledgement awaited, in order."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote, urlsplit

from flops.errors import BadSetting, BrokerUnreachable
from flops.http import reason, trust

if TYPE_CHECKING:
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
