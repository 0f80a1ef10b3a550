"""`flops observe --broker` beside a real Mosquitto: kept texts first, messages of other projects left out, restarts survived."""

import json
import shutil
import socket
import subprocess
import sys
import time

import pytest
from tests.ports import unused_port

from flops.compat.broker import BrokerAddress, Publisher
from flops_wire import flops

pytestmark = pytest.mark.integration
PROJECT, OTHER = "65f0c1d2e3a4b5c6d7e8f901", "65f0c1d2e3a4b5c6d7e8f902"


class Mosquitto:
    def __init__(self, place):
        program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")
        if program is None:
            pytest.skip("mosquitto is not installed")
        self.port = unused_port()
        self.configuration = place / "mosquitto.conf"
        self.configuration.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
        self.program = program
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [self.program, "-c", str(self.configuration)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        pytest.fail("mosquitto does not listen")

    def stop(self):
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def broker(tmp_path):
    server = Mosquitto(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def publisher(broker):
    with Publisher(BrokerAddress(host="127.0.0.1", port=broker.port)) as publisher:
        yield publisher


def observing(broker, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "flops.cli.main", "observe", PROJECT, "--broker", f"127.0.0.1:{broker.port}", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def say(publisher, topic, document):
    text = document if isinstance(document, str) else json.dumps(document)
    publisher.publish(topic, text, retain=topic.startswith("project_observer"))


def test_a_project_from_its_kept_text_to_its_outcome(broker, publisher):
    say(publisher, flops.observer_topic(PROJECT), "Project Observer started")
    command = observing(broker)
    assert command.stdout.readline() == "observer: Project Observer started\n"
    say(publisher, flops.BUILDER_STARTED, flops.payload(PROJECT))
    say(publisher, flops.BUILDER_FAILED, flops.failure(OTHER, "somebody else's"))
    say(publisher, flops.observer_topic(PROJECT), "two\nlines \x1b[31m")
    say(publisher, flops.BUILDER_SUCCESS, flops.payload(PROJECT, full_builder_process="9 seconds"))
    say(publisher, flops.observer_topic(PROJECT), "Successfully pushed")
    out, err = command.communicate(timeout=30)
    assert command.returncode == 0, err
    assert out.splitlines() == [
        "fl_actors_image_builder: started",
        "observer: two",
        "  lines \\x1b[31m",
        "fl_actors_image_builder: success: full_builder_process: 9 seconds",
        "observer: Successfully pushed",
        "images are ready",
    ]


def test_a_broker_that_restarts_and_a_builder_that_fails(broker, publisher):
    say(publisher, flops.observer_topic(PROJECT), "first")
    command = observing(broker, "--json")
    assert json.loads(command.stdout.readline()) == {"topic": flops.observer_topic(PROJECT), "payload": "first"}
    broker.stop()
    assert "listening" in command.stderr.readline()
    assert "reconnecting" in command.stderr.readline()
    broker.start()
    assert "listening again" in command.stderr.readline()  # before, nobody keeps what is not retained
    publisher.close()
    say(publisher, flops.BUILDER_FAILED, flops.failure(PROJECT, "no wheel"))
    out, _ = command.communicate(timeout=30)
    assert command.returncode == 9
    assert json.loads(out.splitlines()[-1])["payload"]["error_msg"] == "no wheel"


def test_no_broker():
    port = unused_port()
    words = [sys.executable, "-m", "flops.cli.main", "observe", PROJECT, "--broker", f"127.0.0.1:{port}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "BROKER_UNREACHABLE" in done.stderr, "Traceback" in done.stderr) == (9, True, False)
    for wrong in (["a/b"], ["#"], [PROJECT, "--manager", "http://127.0.0.1:1"]):
        words = [sys.executable, "-m", "flops.cli.main", "observe", *wrong, "--broker", f"127.0.0.1:{port}"]
        assert subprocess.run(words, capture_output=True, timeout=60, check=False).returncode == 2
