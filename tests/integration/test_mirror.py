"""The mirror to FLOps' components over Mosquitto: exact topics, payloads and retained texts; broker and manager restarted."""

from __future__ import annotations

import getpass
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from tests.ports import unused_port

from flops.compat.broker import BrokerAddress, Publisher
from flops.service.mirror import Mirror, mirror_messages
from flops.service.project import Project
from flops.service.store import Store
from flops_wire.events import event

pytestmark = pytest.mark.integration

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RESULT = {
    "images": {
        actor: {"reference": f"r:5073/acme/digits/{actor}:{COMMIT}", "platforms": {}}
        for actor in ("learner", "aggregator")
    },
    "python": {"used": "3.11.2"},
    "seconds": {"clone": 1.0, "total": 75.0},
}


def wait_until(condition, seconds=30, what="it"):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.02)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Mosquitto:
    """Keeps sessions and retained messages over a restart, as in production."""

    def __init__(self, place) -> None:
        program = shutil.which("mosquitto")
        if program is None:
            pytest.skip("mosquitto is not installed")
        self.port = unused_port()
        place.mkdir()
        settings = place / "mosquitto.conf"
        settings.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {place}/\n"
            f"user {getpass.getuser()}\n"  # as root it would become another user, who can't write here
        )
        self._words = [program, "-c", settings]
        self._log = place / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._words, stdout=log, stderr=log)
        wait_until(lambda: listens(self.port), what="mosquitto's start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=20)
            self._process = None


@pytest.fixture
def broker(tmp_path):
    broker = Mosquitto(tmp_path / "broker")
    broker.start()
    yield broker
    broker.stop()


@contextmanager
def subscriber(port, name):
    """What a component hears, in order; its session outlives connections."""
    heard, ready = [], threading.Event()
    client = Client(CallbackAPIVersion.VERSION2, client_id=name, clean_session=False)
    client.reconnect_delay_set(1, 1)

    def connected(client, _data, flags, _reason, _properties):
        if not flags.session_present:  # subscribing anew would bring what is retained once more
            client.subscribe([("flops_manager/#", 1), ("project_observer/#", 1)])

    client.on_connect = connected
    client.on_subscribe = lambda *_: ready.set()

    def listen(_client, _data, message):
        told = (message.topic, message.payload.decode(), message.retain)
        if not (message.dup and told in heard):  # the broker lost our word that it had arrived
            heard.append(told)

    client.on_message = listen
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        assert ready.wait(20)
        yield heard
    finally:
        client.disconnect()
        client.loop_stop()


def project(number):
    return Project(
        id=f"{number:024x}",
        repository="https://github.com/Acme/Digits",
        commit=COMMIT,
        recipe="sha256:0",
        platforms=("linux/amd64",),
        sla={"verbose": True},
        created=0.0,
        attempt=1,
    )


def put_out(store: Store, number):
    """One project's whole life, as the manager enters it."""
    life = [
        event("deploy", "started", ""),
        event("deploy", "finished", ""),
        event("clone", "started", ""),
        event("resolve", "started", ""),
        event("push", "started", ""),
        event("push", "succeeded", "", data={"result": RESULT}),
    ]
    one = project(number)
    messages = [message for each in life for message in mirror_messages(one, each)]
    with store.write() as tables:
        for topic, payload, retained in messages:
            tables.put_out(one.id, topic, payload, retained=retained)
    return [(topic, payload) for topic, payload, _ in messages]


def once(messages):
    """Without those that came twice in a row: the mirror sends at least once."""
    return [message for before, message in zip([None, *messages], messages, strict=False) if message != before]


def test_every_message_arrives_in_order_through_restarts_of_broker_and_manager(tmp_path, broker):
    address = BrokerAddress(host="127.0.0.1", port=broker.port)
    store = Store(tmp_path / "manager.sqlite").open()
    mirror = Mirror(store, Publisher(address, seconds=3))
    mirror.start()
    with subscriber(broker.port, "component") as heard:
        expected = put_out(store, 1)
        wait_until(lambda: len(heard) >= len(expected))
        assert expected[0] == (
            "project_observer/000000000000000000000001",
            "New FLOps images need to be build. Start build delegation processes.",
        )
        manager = {topic: json.loads(text) for topic, text, _ in heard if topic.startswith("flops_manager/")}
        assert manager["flops_manager/fl_actors_image_builder/started"] == {"flops_project_id": project(1).id}
        success = manager["flops_manager/fl_actors_image_builder/success"]
        assert success["build_preparation"] == "1 seconds"
        assert success["full_builder_process"] == "'1' minutes and 15 seconds"

        broker.stop()
        expected += put_out(store, 2)
        wait_until(lambda: not mirror.connected, what="the outage")
        assert store.outbox_count() > 0
        broker.start()
        wait_until(lambda: store.outbox_count() == 0, 60, "the mirror's end")

        mirror.close()  # the manager is restarted, and something happens in between
        expected += put_out(store, 3)
        store.close()
        store = Store(tmp_path / "manager.sqlite").open()
        assert store.outbox_count() == len(store.outbox_next(1000)) > 0
        mirror = Mirror(store, Publisher(address, seconds=3))
        mirror.start()
        wait_until(lambda: store.outbox_count() == 0, 60, "the mirror's end")
        wait_until(lambda: len(once(heard)) >= len(expected), what="the last message")
        mirror.close()
    assert [(topic, text) for topic, text, _ in once(heard)] == expected
    store.close()

    with subscriber(broker.port, "late") as late:  # who comes late sees each observer's last sentence
        wait_until(lambda: len(late) >= 3)
    last = {topic: text for topic, text in expected if topic.startswith("project_observer/")}
    assert {topic: text for topic, text, _ in late} == last
    assert all(retained for _, _, retained in late)


@contextmanager
def service(place, *words):
    """`flops serve` on free ports; its address."""
    program = [sys.executable, "-m", "flops.cli.main", "serve", "--port", "0", "--registry-port", "0", "--json"]
    with (
        (place / "serve.log").open("wb") as log,
        subprocess.Popen(
            [*program, "--data", place / "data", *words], stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL
        ) as child,
    ):
        try:
            text = ""
            while not text.rstrip().endswith("}"):
                line = child.stdout.readline().decode()
                assert line, (place / "serve.log").read_text()
                text += line
            yield json.loads(text)["manager"]
        finally:
            child.terminate()
            child.wait(timeout=60)


def test_a_service_tells_its_broker_and_takes_messages_at_the_observer_s_port(tmp_path, broker):
    repository = tmp_path / "empty"
    repository.mkdir()
    (repository / "README").write_text("no model here\n")
    port = unused_port()
    words = ["--broker", f"127.0.0.1:{broker.port}", "--observer-port", str(port), "--allow-local"]
    with subscriber(broker.port, "component") as heard, service(tmp_path, *words) as url:
        sla = {"customerID": "Admin", "verbose": True, "ml_repo_url": str(repository), "ml_model_flavor": "sklearn"}
        answer = httpx.post(f"{url}/api/flops/projects", json=sla)
        assert answer.status_code == 200, answer.text
        number = answer.json()["project"]["id"]
        wait_until(lambda: heard and heard[-1][1] == "Builder failed. Terminating this FLOps Project.", 60, "the end")
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(f"about {number}: \x1b[2Jhello".encode())
        page = f"{url}/api/flops/projects/{number}/logs"
        wait_until(lambda: f"about {number}: \\x1b[2Jhello" in httpx.get(page).text, what="the message in the log")
    topics = [(topic.replace(number, "ID"), text) for topic, text, _ in heard]
    error = topics[-2][1]
    assert error.startswith("error[STRUCTURE]: ")
    failed = [json.loads(text) for topic, text in topics if topic == "flops_manager/fl_actors_image_builder/failed"]
    assert failed == [{"flops_project_id": number, "error_msg": error}]
    assert [topic for topic, _ in topics] == [
        "project_observer/ID",
        "project_observer/ID",
        "flops_manager/fl_actors_image_builder/started",
        "flops_manager/fl_actors_image_builder/failed",
        "project_observer/ID",
        "project_observer/ID",
    ]
