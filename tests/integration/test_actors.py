"""The actors as an image runs them, but in virtual environments: real Flower, real workers, real messages."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import flight

from flops_actor.family import below
from flops_actor.worker import WorkerClient, WorkerProcess
from flops_wire import rounds

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/digits-sklearn"
MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
RUNTIME = ROOT / f"src/flops/resources/runtime-{MINOR}.txt"
ML = ["numpy==1.26.4", "scikit-learn==1.4.2", "scipy==1.13.0", "datasets>=2.14.3,<3", "pyarrow<26", "pillow"]
SOURCES = f"{ROOT / 'src'}:{ROOT / 'src/flops_worker/compat'}"
ENVIRONMENTS = Path(tempfile.gettempdir()) / "flops-test-environments"


def environment(name, *arguments):
    """A virtual environment's interpreter, made once for each set of arguments and kept between runs."""
    uv = Path(sys.executable).parent / "uv"
    if not uv.exists():
        pytest.skip("uv is not installed")
    if not RUNTIME.exists():
        pytest.skip(f"Flower is not pinned for Python {MINOR}")
    key = hashlib.sha256("\0".join([*arguments, RUNTIME.read_text(), sys.version]).encode()).hexdigest()[:12]
    target = ENVIRONMENTS / f"{name}-{key}"
    if not (target / "ready").exists():
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, target], check=True, timeout=60)
        install = [uv, "pip", "install", "-q", "--compile-bytecode", "--python", target / "bin/python", *arguments]
        done = subprocess.run(install, check=False, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            pytest.skip(f"the package index can't be reached: {done.stderr.strip()[-300:]}")
        (target / "ready").touch()
    return target / "bin/python"


@pytest.fixture(scope="session")
def runtime():
    """Flower's environment, as pinned for images."""
    return environment("runtime", "--require-hashes", "--no-deps", "-r", str(RUNTIME))


@pytest.fixture(scope="session")
def ml():
    """A user's environment."""
    return environment("ml", *ML)


@pytest.fixture(scope="session")
def plain():
    """Flower and the user's packages in one."""
    return environment("plain", "flwr==1.41.0", *ML)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.1)
    pytest.fail(f"not within {seconds} s: {what}")


class Actor:
    """One actor in a process, and its two outputs."""

    def __init__(self, directory, name, kind, words, variables):
        self.out, self.log = directory / f"{name}.out", directory / f"{name}.log"
        program = f"import sys; from flops_actor import {kind}; sys.exit({kind}.main())"
        with self.out.open("wb") as out, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [variables.pop("python"), "-c", program, *map(str, words)],
                env={**os.environ, "PYTHONPATH": SOURCES, "FLOPS_LEARNER_NAME": name, **variables},
                stdout=out,
                stderr=log,
                cwd=directory,
                start_new_session=True,
            )

    def wait(self, seconds=120):
        return self.process.wait(timeout=seconds)

    def lines(self):
        return self.out.read_text().splitlines()

    def text(self):
        return self.log.read_text()

    def children(self):
        return {member for member in below([self.process.pid]) if member.pid != self.process.pid}


@pytest.fixture
def actors(tmp_path, runtime, ml):
    """Starts actors; whatever is left of them is stopped."""
    started = []

    def start(name, kind, *words, repository=EXAMPLE, **variables):
        base = {
            "python": str(runtime),
            "FLOPS_ML_PYTHON": str(ml),
            "FLOPS_REPO": str(repository),
            "FLOPS_DATA": str(EXAMPLE / "data"),
        }
        actor = Actor(tmp_path, name, kind, words, {**base, **variables})
        started.append(actor)
        return actor

    yield start
    for actor in started:
        if actor.process.poll() is None:
            actor.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                actor.process.wait(timeout=10)
        if actor.process.poll() is None:
            actor.process.kill()


@pytest.fixture
def observer():
    """FLOps' observer, as far as actors know it: a TCP server that reads one text from each connection."""
    texts = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, connection.makefile("rb") as stream:
                        texts.append(stream.read().decode())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", texts
        server.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=10)


SUBSCRIBER = """
import json, sys
from paho.mqtt import client as mqtt
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
client.on_subscribe = lambda *words: print("ready", flush=True)
client.on_message = lambda c, u, m: print(json.dumps([m.topic, json.loads(m.payload)]), flush=True)
client.connect("127.0.0.1", int(sys.argv[1]))
client.subscribe("flops_manager/#", qos=1)
client.loop_forever()
"""


@pytest.fixture
def broker(tmp_path, runtime):
    """Mosquitto, and all that is sent to FLOps' manager through it."""
    program = shutil.which("mosquitto")
    if program is None:
        pytest.skip("mosquitto is not installed")
    port = free_port()
    settings = tmp_path / "mosquitto.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    messages = []
    with (tmp_path / "mosquitto.log").open("wb") as log, contextlib.ExitStack() as stack:
        server = stack.enter_context(subprocess.Popen([program, "-c", settings], stdout=log, stderr=log))
        stack.callback(server.terminate)
        wait_for(lambda: _listens(port), 10, "mosquitto")
        words = [runtime, "-c", SUBSCRIBER, str(port)]
        subscriber = stack.enter_context(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        stack.callback(subscriber.terminate)
        assert subscriber.stdout.readline() == "ready\n"
        threading.Thread(target=lambda: messages.extend(map(json.loads, subscriber.stdout)), daemon=True).start()
        yield f"127.0.0.1:{port}", messages


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_federation_gives_what_plain_flower_gives(actors, broker, observer, plain):
    aggregator_address = f"127.0.0.1:{free_port()}"
    early = actors("early", "learner", "p1", "-", "-", aggregator_address, "digits", FLOPS_DATA_SHARD="0/2")
    wait_for(lambda: "waiting for the aggregator" in early.text(), 60, "a learner that waits")
    words = ["p1", broker[0], observer[0], "http://127.0.0.1:1", "CLASSIC_AGGREGATOR", 3, 2, 2, 2]
    aggregator = actors("aggregator", "aggregator", *words, "--port", aggregator_address.split(":")[1])
    late = actors("late", "learner", "p1", "-", "-", aggregator_address, FLOPS_DATA_SHARD="1/2")

    assert aggregator.wait() == 0, aggregator.text()[-3000:]
    assert [early.wait(30), late.wait(30)] == [0, 0]

    told = [rounds.parse(line) for line in aggregator.lines()]
    reference = _plain(plain, 2, 3)
    assert [one.number for one in told] == [1, 2, 3]
    assert np.allclose([[one.loss, one.accuracy] for one in told], reference, rtol=0, atol=1e-9)
    assert told[-1].accuracy > 0.75
    assert {(one.trained, one.evaluated, one.learners) for one in told} == {(1437, 360, 2)}
    machine = os.uname().machine
    for learner in (early, late):
        assert learner.lines()[0].startswith(f"worker: platform.machine() = {machine}, Python {MINOR}.")
        assert learner.lines()[1] == "worker: 2 parameters: (10, 64) <f8, (10,) <f8"
        assert not learner.children()

    wait_for(lambda: len(broker[1]) == 2, 10, "two messages to the manager")
    fields = {"flops_project_id": "p1", "aggregator_type": "CLASSIC_AGGREGATOR"}
    metrics = {"accuracy": told[-1].accuracy, "loss": told[-1].loss, "experiment_id": "", "run_id": ""}
    assert broker[1] == [
        ["flops_manager/aggregator/started", fields],
        ["flops_manager/aggregator/success", {**fields, **metrics}],
    ]
    assert observer[1][0] == "Aggregator started"
    assert f"accuracy: {told[-1].accuracy}" in observer[1][1]
    assert "nothing is tracked at http://127.0.0.1:1" in aggregator.text()


def _plain(python, learners, count):
    program = Path(__file__).parent / "plain_flower.py"
    variables = {
        **os.environ,
        "PYTHONPATH": SOURCES,
        "FLOPS_DATA": str(EXAMPLE / "data"),
        "FLWR_TELEMETRY_ENABLED": "0",
    }
    words = [python, program, EXAMPLE, str(learners), str(count)]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


FAILING = """
    import os
    import example_model

    class ModelManager(example_model.ModelManager):
        rounds = 0

        def fit_model(self):
            self.rounds += 1
            if os.environ["FLOPS_LEARNER_NAME"] == "bad" and self.rounds == 2:
                os._exit(9)  # as a process that the kernel stops
            return super().fit_model()

        def evaluate_model(self):
            if os.environ["FLOPS_LEARNER_NAME"] == "bad":
                raise LookupError("no answer in round", self.rounds)
            return super().evaluate_model()
"""


def test_what_fails_in_a_learner_arrives_at_the_aggregator(actors, broker, observer, tmp_path):
    repository = tmp_path / "repo"
    shutil.copytree(EXAMPLE, repository)
    (repository / "model_manager.py").rename(repository / "example_model.py")
    (repository / "model_manager.py").write_text(textwrap.dedent(FAILING))
    port = free_port()
    words = ["p2", broker[0], observer[0], "-", "CLASSIC_AGGREGATOR", 3, 2, 2, 1, "--port", port]
    aggregator = actors("aggregator", "aggregator", *words, repository=repository)
    learner = ["p2", broker[0], "-", f"127.0.0.1:{port}", "digits"]
    bad = actors("bad", "learner", *learner, repository=repository, FLOPS_DATA_SHARD="0/2")
    good = actors("good", "learner", *learner, repository=repository, FLOPS_DATA_SHARD="1/2", FLOPS_LINK_SECONDS="1")

    assert aggregator.wait() == 1, aggregator.text()[-3000:]
    # an exception in the first round: one learner is enough to evaluate, so the federation goes on
    (first,) = [rounds.parse(line) for line in aggregator.lines()]
    assert (first.number, first.learners) == (1, 1)
    log = aggregator.text()
    assert re.search(
        r"a learner failed: node \d+: learner bad \(tags digits\), round 1, evaluate: LookupError in ", log
    )
    assert "evaluate_model(): ('no answer in round', 1)" in log
    assert 'raise LookupError("no answer in round", self.rounds)' in log
    assert 'raise LookupError("no answer in round", self.rounds)' in bad.text()
    # a worker that dies in the second: too few are left
    assert "the federation failed: round 2, fit: 1 of 2 learners succeeded, 2 must" in log
    assert re.search(
        r"node \d+: learner bad \(tags digits\), round 2, fit: the worker ended while it ran fit_model", log
    )
    assert [bad.wait(60), good.wait(60)] == [1, 1]
    assert "ERROR the worker ended with 9" in bad.text()
    assert "went away after round 2 of 3" in good.text()

    wait_for(lambda: len(broker[1]) >= 3, 20, "three messages to the manager")
    sent = dict(broker[1])
    assert set(sent) == {
        f"flops_manager/{end}" for end in ("aggregator/started", "aggregator/failed", "learner/failed")
    }
    assert sent["flops_manager/aggregator/failed"]["aggregator_type"] == "CLASSIC_AGGREGATOR"
    assert "1 of 2 learners succeeded" in sent["flops_manager/aggregator/failed"]["error_msg"]
    assert sent["flops_manager/learner/failed"] == {"flops_project_id": "p2", "error_msg": "the worker ended with 9"}
    assert "1 of 2 learners succeeded" in observer[1][-1]


def test_a_learner_whose_code_can_t_start_says_so(actors, broker, observer, tmp_path):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/model_manager.py").write_text("import nowhere_to_be_found\n")
    words = ["p3", broker[0], observer[0], "127.0.0.1", "digits"]
    learner = actors("learner", "learner", *words, repository=tmp_path / "repo")
    assert learner.wait(60) == 1
    wait_for(lambda: broker[1] and observer[1], 10, "both messages")
    ((topic, payload),) = broker[1]
    assert topic == "flops_manager/learner/failed"
    assert payload["flops_project_id"] == "p3"
    for text in (payload["error_msg"], observer[1][0], learner.text()):
        assert 'model_manager.py", line 1' in text
        assert "No module named 'nowhere_to_be_found'" in text


def test_data_that_are_not_there_are_told(actors):
    learner = actors("learner", "learner", "p", "-", "-", "127.0.0.1", "cats")
    assert learner.wait(60) == 1
    assert "no files for the tags cats; it holds: digits" in learner.text()


def test_a_stopped_aggregator_stops_all_that_it_started(actors):
    words = ["p", "-", "-", "-", "CLASSIC_AGGREGATOR", 1, 1, 1, 1, "--port", free_port()]
    aggregator = actors("aggregator", "aggregator", *words)
    wait_for(lambda: "waiting for learners: 0 of 1" in aggregator.text(), 60, "a federation that waits")
    children = aggregator.children()
    assert len(children) >= 4, "worker, link, executor, federation"
    aggregator.process.send_signal(signal.SIGTERM)
    assert aggregator.wait(15) == 143
    assert not [member for member in children if member.alive()]


def test_too_few_learners_end_the_federation(actors):
    words = ["p", "-", "-", "-", "CLASSIC_AGGREGATOR", 1, 2, 1, 1, "--port", free_port()]
    aggregator = actors("aggregator", "aggregator", *words, FLOPS_LEARNERS_SECONDS="1")
    assert aggregator.wait(60) == 1
    assert "round 1, fit: 0 of 2 learners were connected within 1 s" in aggregator.text()


IMAGES = """
import sys
import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
rng = np.random.default_rng(0)
images = [rng.integers(0, 255, (4, 6), dtype=np.uint8) for _ in range(20)]
features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
data = {"image": images, "label": [i % 2 for i in range(20)]}
Dataset.from_dict(data, features=features).to_parquet(sys.argv[1])
print(sum(int(image.sum()) for image in images))
"""
IMAGE_MODEL = """
    import numpy as np
    from flops_utils.ml_repo_building_blocks import load_dataset
    from flops_utils.ml_repo_templates import ModelManagerTemplate

    class ModelManager(ModelManagerTemplate):
        def __init__(self):
            self.weights = np.zeros(24)
        def set_model_data(self):
            dataset = load_dataset()
            %s
            self.x = dataset["image"].reshape((len(dataset), -1))
            self.y = dataset["label"]
            assert self.x.dtype == np.uint8 and self.y.dtype == np.int64, (self.x.dtype, self.y.dtype)
        def get_model(self):
            return None
        def get_model_parameters(self):
            return [self.weights]
        def set_model_parameters(self, parameters):
            (self.weights,) = parameters
        def fit_model(self):
            self.weights += self.x.sum(axis=0)
            return len(self.y)
        def evaluate_model(self):
            return 0.0, float(self.y.mean()), len(self.y)
"""


class Server(flight.FlightServerBase):
    """As FLOps' data server."""

    def __init__(self, directory):
        self.directory = directory
        super().__init__("grpc://127.0.0.1:0")

    def list_flights(self, context, criteria):
        for path in self.directory.glob("*.parquet"):
            if path.name.split(".")[0] in json.loads(criteria)["data_tags"]:
                endpoint = flight.FlightEndpoint(path.name.encode(), [])
                descriptor = flight.FlightDescriptor.for_path(path.name)
                yield flight.FlightInfo(pq.read_schema(path), descriptor, [endpoint], -1, -1)

    def do_get(self, context, ticket):
        return flight.RecordBatchStream(pq.read_table(self.directory / ticket.ticket.decode()))


@pytest.mark.parametrize("line", ["pass", 'dataset.set_format("numpy")'], ids=["as given", "set_format"])
@pytest.mark.parametrize("source", ["directory", "server"])
def test_images_train_through_reshape(tmp_path, ml, line, source):
    directory, repository = tmp_path / "data", tmp_path / "repo"
    directory.mkdir()
    repository.mkdir()
    (repository / "model_manager.py").write_text(textwrap.dedent(IMAGE_MODEL % line))
    made = subprocess.run([ml, "-c", IMAGES, directory / "faces.1.parquet"], capture_output=True, text=True, check=True)
    with Server(directory) as server, _worker(tmp_path, ml, repository, directory, server, source) as client:
        client.call("set_model_data")
        assert client.call("fit")[0] == 20
        _, (weights,) = client.call("get_parameters")
        assert np.frombuffer(weights.data, weights.dtype).sum() == int(made.stdout)
        assert client.call("evaluate")[0] == [0.0, 0.5, 20]


@contextlib.contextmanager
def _worker(tmp_path, ml, repository, directory, server, source):
    """A worker's client; its data come from the directory or the server."""
    variables = {
        "PYTHONPATH": SOURCES,
        "HF_HOME": str(tmp_path / "hf"),
        "FLOPS_DATA": str(directory) if source == "directory" else "/nonexistent",
        "FLOPS_DATA_SERVER": f"grpc://127.0.0.1:{server.port}",
        "FLOPS_DATA_TAGS": "faces",
    }
    words = [ml, "-m", "flops_worker.process", "--socket", tmp_path / "w", "--repository", repository]
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(words, env={**os.environ, **variables}, stdout=log, stderr=log, cwd=tmp_path)
    try:
        with WorkerProcess(child=child, socket=tmp_path / "w").client() as client:
            assert isinstance(client, WorkerClient)
            yield client
    finally:
        child.kill()
        child.wait()
