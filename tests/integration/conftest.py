"""FLOps' own components as builders meet them: Mosquitto with somebody who listens, and an observer's TCP port."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field

import pytest
from tests.ports import unused_port


@dataclass
class Components:
    """What FLOps' manager and a project's observer heard, in order."""

    broker: str
    observer: str
    messages: list = field(default_factory=list)
    """Topic and payload (JSON, read)."""
    texts: list = field(default_factory=list)

    def wait_for(self, *, messages=0, texts=0):
        end = time.monotonic() + 20
        while len(self.messages) < messages or len(self.texts) < texts:
            assert time.monotonic() < end, f"only {self.messages} and {self.texts} were heard"
            time.sleep(0.02)


@pytest.fixture
def components(tmp_path):
    """FLOps' broker and observer on loopback, with ears."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    program = shutil.which("mosquitto")
    if program is None:
        pytest.skip("mosquitto is not installed")
    port = unused_port()
    settings = tmp_path / "mosquitto.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    observer = socket.create_server(("127.0.0.1", 0))
    heard = Components(broker=f"127.0.0.1:{port}", observer=f"127.0.0.1:{observer.getsockname()[1]}")
    ready = threading.Event()
    client = Client(CallbackAPIVersion.VERSION2)
    client.on_connect = lambda *_: client.subscribe("flops_manager/#", qos=1)
    client.on_subscribe = lambda *_: ready.set()
    client.on_message = lambda _client, _data, message: heard.messages.append(
        [message.topic, json.loads(message.payload)]
    )
    listener = threading.Thread(target=_listen, args=(observer, heard.texts), daemon=True)
    listener.start()
    with (
        (tmp_path / "mosquitto.log").open("wb") as log,
        subprocess.Popen([program, "-c", settings], stdout=log) as server,
    ):
        try:
            _wait(port)
            client.connect("127.0.0.1", port)
            client.loop_start()
            assert ready.wait(20)
            yield heard
        finally:
            client.disconnect()
            client.loop_stop()
            observer.shutdown(socket.SHUT_RDWR)
            observer.close()
            listener.join(timeout=10)
            server.terminate()


def _listen(server, texts):
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection, connection.makefile("rb") as stream:
            texts.append(stream.read().decode())


def _wait(port):
    end = time.monotonic() + 20
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < end, "mosquitto did not start"
        time.sleep(0.02)
