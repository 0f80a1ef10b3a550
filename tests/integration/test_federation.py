"""The main job whole: build, push, pull, federate in containers, and get what plain Flower gets from the same code."""

import contextlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uv

from flops_wire import rounds

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "digits-sklearn"
PLAIN = Path(__file__).with_name("plain_flower")
FLOPS = Path(sys.executable).with_name("flops")
AMD64, ARM64 = "linux/amd64", "linux/arm64"
LEARNERS = 2
ROUNDS = 3
#: Where an actor can't run for want of these, on small virtual machines with hybrid cgroups.
LIMITS = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1000:1000")
#: Failures of a build that say that the machine, not the build, lacks something.
NOT_HERE = ("BASE_UNAVAILABLE", "INDEX_UNREACHABLE")
#: Seconds; on a busy machine of two cores each takes a fraction of it.
SOON, LATER = 120, 300


def need(*programs):
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def run(*words, seconds=SOON, code=0, env=None, cwd=None):
    done = subprocess.run(
        [str(word) for word in words],
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
    )
    assert code in (None, done.returncode), f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(true, *, seconds, process, said):
    """Poll for a condition; the failure says what the process said meanwhile."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert process.poll() is None, f"ended with {process.returncode}:\n{said()}"
        assert time.monotonic() < end, f"not within {seconds} s:\n{said()}"
        time.sleep(0.1)
    return found


@contextlib.contextmanager
def background(words, log, *, env=None, cwd=None):
    """A program whose whole process group is gone at the end."""
    with log.open("wb") as output:
        child = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
    try:
        yield child
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)


def make_repository(place, change=lambda _directory: None):
    """The example's code as a Git repository of one commit, after `change` was made to it."""
    shutil.copytree(EXAMPLE, place, ignore=shutil.ignore_patterns("data", "__pycache__"))
    change(place)
    run("git", "-C", place, "init", "--quiet")
    run("git", "-C", place, "add", "--all")
    author = ("-c", "user.name=Ann", "-c", "user.email=ann@localhost")
    run("git", "-C", place, *author, "commit", "--quiet", "--message", "The example")
    return place


class Podman:
    """podman with storage of its own below `place`, which is all gone at the end."""

    def __init__(self, place):
        self.place = place
        (place / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{place}/graph"\nrunroot = "{place}/run"\n'
        )
        self.environment = {"CONTAINERS_STORAGE_CONF": str(place / "storage.conf")}

    def do(self, *words, seconds=SOON):
        return run("podman", "--runtime", "runc", *words, seconds=seconds, env=self.environment).stdout

    def pull(self, reference, *options):
        self.do("pull", "--quiet", "--tls-verify=false", *options, reference, seconds=LATER)

    @contextlib.contextmanager
    def container(self, name, image, arguments, *, options=()):
        """An actor as a node runs it: nothing to write but /tmp, in the foreground, bounded by the context."""
        words = ["podman", "--runtime", "runc", "run", "--rm", "--pull=never", "--network=host", *LIMITS]
        words += ["--read-only", "--tmpfs", "/tmp", "--name", name, *options, image, *arguments]
        container = Container(self, name, self.place / f"{name}.log")
        with background(words, container.log, env=self.environment) as container.process:
            try:
                yield container
            finally:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    subprocess.run(
                        ["podman", "--runtime", "runc", "rm", "--force", "--ignore", name],
                        check=False,
                        capture_output=True,
                        timeout=SOON,
                        env={**os.environ, **self.environment},
                    )

    def close(self):
        for words in (("rm", "--all", "--force"), ("umount", "--all")):
            subprocess.run(
                ["podman", "--runtime", "runc", *words],
                check=False,
                capture_output=True,
                timeout=SOON,
                env={**os.environ, **self.environment},
            )
        # the overlay driver mounts its directory on itself
        subprocess.run(["umount", "--lazy", self.place / "graph" / "overlay"], check=False, capture_output=True)


class Container:
    def __init__(self, podman, name, log):
        self.podman = podman
        self.name = name
        self.log = log
        self.process = None

    @property
    def text(self):
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern, *, seconds):
        return wait_until(
            lambda: re.search(pattern, self.text), seconds=seconds, process=self.process, said=lambda: self.text
        )

    def ended(self, *, seconds):
        """Its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} did not end within {seconds} s:\n{self.text}")

    def facts(self):
        """What the engine and the kernel say about the running container."""
        told = json.loads(self.podman.do("inspect", self.name))[0]
        process = Path("/proc", str(told["State"]["Pid"]))
        users = re.search(r"^Uid:\s+(.*)$", (process / "status").read_text(), re.MULTILINE)
        mounts = [line.split() for line in (process / "mountinfo").read_text().splitlines()]
        return {
            "digest": told["ImageDigest"],
            "users": set(users[1].split()),
            "mounts": {fields[4]: set(fields[5].split(",")) for fields in mounts},
            "types": {fields[4]: fields[fields.index("-") + 1] for fields in mounts},
        }


@pytest.fixture(scope="module")
def place():
    """Short (podman refuses long paths) and open: what is mounted from here is read by another user."""
    path = Path(tempfile.mkdtemp(prefix="flops-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def podman(place):
    need("podman", "runc")
    if os.geteuid() != 0:
        pytest.skip("containers with podman's overlay driver need root")
    if platform.machine() != "x86_64":
        pytest.skip("federates on linux/amd64")
    podman = Podman(place)
    yield podman
    podman.close()


@pytest.fixture(scope="module")
def environment(place, podman):
    """For `flops`: images and storage of the test's own; the cache of downloads is the machine's."""
    return {"FLOPS_DATA_DIR": str(place / "data"), **podman.environment}


@pytest.fixture(scope="module")
def registry(place):
    """`HOST:PORT` of Debian's docker-registry."""
    need("docker-registry")
    port = free_port()
    config = place / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: {place}/registry}}}}\n"
    )
    log = place / "registry.log"
    with background(["docker-registry", "serve", config], log) as process:
        wait_until(lambda: listens(port), seconds=30, process=process, said=log.read_text)
        yield f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def repository(place):
    need("git")
    return make_repository(place / "digits")


@pytest.fixture(scope="module")
def built(registry, repository, environment):
    """What `flops build --json` says."""
    words = [FLOPS, "build", repository, "--platform", f"{AMD64},{ARM64}"]
    words += ["--registry", f"http://{registry}/fl", "--quiet", "--json"]
    done = run(*words, seconds=LATER, code=None, env=environment)
    told = json.loads(done.stdout)
    if told.get("error", {}).get("code") in NOT_HERE:
        pytest.skip(f"nothing can be built here: {told['error']['message']}")
    assert done.returncode == 0, told
    return told


def by_digest(built, actor, platform):
    image = built["images"][actor]
    return f"{image['reference'].rpartition(':')[0]}@{image['platforms'][platform]['digest']}"


@pytest.fixture(scope="module")
def data(place):
    shutil.copytree(EXAMPLE / "data", place / "shards")
    for path in (place / "shards").iterdir():
        path.chmod(0o644)
    (place / "shards").chmod(0o755)
    return place / "shards"


@pytest.fixture(scope="module")
def plain(place, repository, built, data, environment):
    """A future of the metrics of Flower alone, by round."""
    with ThreadPoolExecutor() as pool:
        yield pool.submit(federate_plainly, place, repository, built, data, environment)


def federate_plainly(place, repository, built, data, environment):
    """One environment with Flower and the ML packages, the same code and shards."""
    python = plain_environment(place / "plain", repository, built["python"]["used"], environment)
    shutil.copytree(PLAIN, place / "app", ignore=shutil.ignore_patterns("__pycache__"))
    port = free_port()
    result = place / "plain.json"
    home = place / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    env = {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, (repository, ROOT / "src" / "flops_worker" / "compat", ROOT / "src"))),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        # each message is a new process; empty is as unset
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(place / "bytecode"),
        "FLOPS_DATA": str(data),
        "PLAIN_RESULT": str(result),
        "PLAIN_ROUNDS": str(ROUNDS),
        "PLAIN_LEARNERS": str(LEARNERS),
    }
    link = [python.with_name("flower-superlink"), "--insecure", "--disable-runtime-dependency-installation"]
    node = [python.with_name("flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{port}"]
    with contextlib.ExitStack() as stack:
        link += ["--host", "127.0.0.1", "--port", str(port)]
        log = place / "link.log"
        started = stack.enter_context(background(link, log, env=env))
        wait_until(lambda: listens(port), seconds=SOON, process=started, said=log.read_text)
        for i in range(LEARNERS):
            shard = {**env, "FLOPS_DATA_SHARD": f"{i}/{LEARNERS}"}
            words = [*node, "--host", "127.0.0.1", "--port", str(free_port())]
            stack.enter_context(background(words, place / f"node-{i}.log", env=shard))
        log = place / "run.log"
        words = [python.with_name("flwr"), "run", place / "app", "here", "--stream"]
        submitted = stack.enter_context(background(words, log, env=env))
        wait_until(result.is_file, seconds=LATER, process=submitted, said=log.read_text)
        submitted.wait(SOON)
    return {int(number): metrics for number, metrics in json.loads(result.read_text()).items()}


def plain_environment(path, repository, version, environment):
    """The image's two locks in one place. Where both name a package the runtime's version is taken, but for NumPy."""
    told = run(FLOPS, "check", repository, "--platform", AMD64, "--quiet", "--json", env=environment)
    pins = {wheel["name"]: wheel["version"] for wheel in json.loads(told.stdout)["locks"][AMD64]}
    minor = version.rpartition(".")[0]
    runtime = (resources.files("flops") / "resources" / f"runtime-{minor}.txt").read_text()
    theirs = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", runtime, re.MULTILINE))
    pins = {**pins, **theirs, "numpy": pins["numpy"]}
    wanted = path.with_suffix(".txt")
    wanted.write_text("".join(f"{name}=={pinned}\n" for name, pinned in sorted(pins.items())))
    index = os.environ.get("FLOPS_INDEX_URL")
    env = {"UV_DEFAULT_INDEX": index} if index else {}
    words = [uv.find_uv_bin(), "venv", "--quiet", "--no-python-downloads", "--python", minor, path]
    if subprocess.run(words, check=False, capture_output=True, timeout=SOON).returncode != 0:
        pytest.skip(f"this machine has no Python {minor}")
    python = path / "bin" / "python"
    words = [uv.find_uv_bin(), "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--python", python]
    run(*words, "-r", wanted, seconds=LATER, env=env)
    return python


@pytest.fixture(scope="module")
def federation(podman, built, data, plain):
    """An aggregator and two learners with disjoint data from the pushed images: rounds, and facts of each container.

    It depends on `plain` so that both run side by side.
    """
    for actor in built["images"]:
        podman.pull(by_digest(built, actor, AMD64))
    port, number = free_port(), str(LEARNERS)
    words = ["test", "-", "-", "-", "CLASSIC_AGGREGATOR", str(ROUNDS), number, number, number, "--port", str(port)]
    with contextlib.ExitStack() as stack:
        image = by_digest(built, "aggregator", AMD64)
        seconds = ("--env", f"FLOPS_LEARNERS_SECONDS={LATER}", "--env", f"FLOPS_ROUND_SECONDS={LATER}")
        aggregator = stack.enter_context(podman.container("aggregator", image, words, options=seconds))
        learners = [
            stack.enter_context(
                podman.container(
                    f"learner-{i}",
                    by_digest(built, "learner", AMD64),
                    ["test", "-", "-", f"127.0.0.1:{port}", "digits"],
                    options=["--volume", f"{data}:/data:ro", "--env", f"FLOPS_DATA_SHARD={i}/{LEARNERS}"],
                )
            )
            for i in range(LEARNERS)
        ]
        aggregator.wait_for("round 1/", seconds=LATER)
        facts = {one.name: one.facts() for one in (aggregator, *learners)}
        codes = [one.ended(seconds=LATER) for one in (aggregator, *learners)]
        seen = [one for one in map(rounds.parse, aggregator.text.splitlines()) if one]
    assert codes == [0, 0, 0], aggregator.text
    return seen, facts


def test_the_running_containers_are_the_pushed_images(built, federation):
    _, facts = federation
    pushed = {actor: image["platforms"][AMD64]["digest"] for actor, image in built["images"].items()}
    running = {name: one["digest"] for name, one in facts.items()}
    assert running == {
        "aggregator": pushed["aggregator"],
        "learner-0": pushed["learner"],
        "learner-1": pushed["learner"],
    }
    assert pushed["aggregator"] != pushed["learner"]


def test_containers_run_confined(federation):
    _, facts = federation
    for name, one in facts.items():
        assert one["users"] == {"65532"}, name
        assert "ro" in one["mounts"]["/"], name
        assert "rw" in one["mounts"]["/tmp"], name
        assert one["types"]["/tmp"] == "tmpfs", name


def test_training_succeeds(federation, data):
    seen, _ = federation
    rows = sum(pq.read_metadata(path).num_rows for path in data.iterdir())
    assert [one.number for one in seen] == list(range(1, ROUNDS + 1))
    assert {one.learners for one in seen} == {LEARNERS}
    # disjoint shards: together the learners have every row once
    assert {one.trained + one.evaluated for one in seen} == {rows}
    assert seen[-1].accuracy > 0.75


def test_every_round_is_what_plain_flower_computes(federation, plain):
    seen, _ = federation
    expected = plain.result(LATER)
    assert sorted(expected) == list(range(1, ROUNDS + 1))
    assert len({one.loss for one in seen}) == ROUNDS  # else equality would say little
    for one in seen:
        assert one.loss == pytest.approx(expected[one.number]["loss"], rel=0, abs=1e-9)
        assert one.accuracy == pytest.approx(expected[one.number]["accuracy"], rel=0, abs=1e-9)


def test_the_arm64_learner_starts_under_emulation(podman, built, data):
    if not Path("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists():
        pytest.skip("qemu-user-static is not registered with the kernel (binfmt_misc)")
    image = by_digest(built, "learner", ARM64)
    podman.pull(image, "--arch", "arm64")
    # the worker tells what it runs on before the aggregator is looked for, and there is none
    words = ["test", "-", "-", f"127.0.0.1:{free_port()}", "digits"]
    options = ["--arch", "arm64", "--volume", f"{data}:/data:ro", "--env", f"FLOPS_AGGREGATOR_SECONDS={SOON}"]
    with podman.container("learner-arm64", image, words, options=options) as learner:
        learner.wait_for(r"(?m)^worker: 2 parameters: \(10, 64\) <f8, \(10,\) <f8\s*$", seconds=LATER)
        assert re.search(r"(?m)^worker: platform\.machine\(\) = aarch64, Python 3\.", learner.text)
        learner.wait_for("waiting for the aggregator", seconds=SOON)
        facts = learner.facts()
    assert facts["digest"] == built["images"]["learner"]["platforms"][ARM64]["digest"]
    assert facts["users"] == {"65532"}


def png(pixels):
    """An 8-bit greyscale PNG image (W3C PNG, sections 5 and 11) of an array of rows."""

    def chunk(kind, content):
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def pictures(place):
    """The example's digits as Hugging Face stores images: encoded, with the feature named in the file's metadata."""
    (source,) = (EXAMPLE / "data").glob("*.parquet")
    table = pq.read_table(source)
    images = np.array(table["image"].to_pylist(), dtype=np.uint8) * 15
    features = {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = {"image": [{"bytes": png(image), "path": None} for image in images], "label": table["label"].to_pylist()}
    path = place / "pictures" / "digits.png.parquet"
    path.parent.mkdir(mode=0o755)
    pq.write_table(pa.table(rows, schema=schema), path)
    path.chmod(0o644)
    return path.parent


def test_encoded_images_train_through_reshape(place, environment, built, pictures):
    def change(directory):
        path = directory / "data_manager.py"
        text = path.read_text()
        old = 'images = dataset["image"].reshape((len(dataset), -1)) / BRIGHTEST'
        assert old in text
        path.write_text(text.replace(old, 'images = load_dataset()["image"].reshape(-1, 64) / 240'))

    repository = make_repository(place / "pictured", change)
    words = [FLOPS, "try", repository, "--data", pictures, "--learners", "1", "--rounds", "1", "--json"]
    told = json.loads(run(*words, seconds=LATER, env=environment).stdout)
    (only,) = told["rounds"]
    assert only["learners"] == 1
    assert only["trained"] + only["evaluated"] == 1797
    assert only["accuracy"] > 0.75


def test_an_exception_in_the_users_code_is_told_with_its_line(place, environment, built, data):
    """It is raised deep in a package: the user's own line stands at the start of a long traceback."""
    good, bad = "self.model.fit(images, labels)", "self.model.fit(images, labels[:3])"

    def change(directory):
        path = directory / "model_manager.py"
        text = path.read_text()
        assert good in text
        path.write_text(text.replace(good, bad))

    repository = make_repository(place / "broken", change)
    lines = (repository / "model_manager.py").read_text().splitlines()
    line = next(i for i, text in enumerate(lines, start=1) if bad in text)
    told = run(FLOPS, "try", repository, "--data", data, code=9, seconds=LATER, env=environment).stderr
    assert "error[TRAINING_FAILED]: the aggregator ended with 1" in told
    assert f'model_manager.py", line {line}, in fit_model' in told
    assert "ValueError: Found input variables with inconsistent numbers of samples" in told


#: Runs in the user's fit_model: reaches for the host and for all that it can get, and tells what it got.
GREED = """
        import os, socket, threading

        def refused(family, address):
            with socket.socket(family) as probe:
                probe.settimeout(2)
                try:
                    probe.connect(address)
                except OSError:
                    return True
                return False

        def grows(step, error):
            count = 0
            try:
                while count < 4000:
                    step()
                    count += 1
            except error:
                pass
            return count

        hosts = [refused(socket.AF_INET, (host, PORT)) for host in ADDRESSES]
        hosts.append(refused(socket.AF_UNIX, ABSTRACT))
        print("greed: refused", all(hosts), [name for _, name in socket.if_nameindex()])
        with open("/tmp/greed", "wb", buffering=0) as file:
            print("greed: tmp", grows(lambda: file.write(bytes(1 << 20)), OSError))
        os.unlink("/tmp/greed")
        done = threading.Event()
        threads = grows(lambda: threading.Thread(target=done.wait, daemon=True).start(), RuntimeError)
        done.set()
        print("greed: threads", threads)
        hog = os.fork()
        if not hog:
            grabbed = [os.urandom(1 << 20) for _ in range(1500)]
            os._exit(0)
        print("greed: hog", os.waitpid(hog, 0)[1])
        status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
        print("greed: rights", status["CapEff"].strip(), status["CapBnd"].strip(), status["NoNewPrivs"].strip(), flush=True)
"""


@pytest.fixture
def canaries():
    """Servers of the host: a TCP port on all addresses and an abstract Unix socket; each connection is counted."""
    seen = []
    name = f"\0flops-canary-{os.getpid()}"
    with socket.create_server(("0.0.0.0", 0)) as tcp, socket.socket(socket.AF_UNIX) as local:
        local.bind(name)
        local.listen()
        for server in (tcp, local):
            server.settimeout(0)
        yield tcp.getsockname()[1], name, seen
        for server in (tcp, local):
            with contextlib.suppress(BlockingIOError):
                seen.append(server.accept())


def addresses():
    """Of this host, each as a container could name it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        with contextlib.suppress(OSError):
            probe.connect(("192.0.2.1", 9))  # sends nothing
        return sorted({"127.0.0.1", probe.getsockname()[0]} - {"0.0.0.0"})


def test_a_learners_code_gets_no_network_and_no_more_than_its_limits(place, environment, data, canaries):
    port, name, seen = canaries

    def change(directory):
        path = directory / "model_manager.py"
        constants = f"PORT, ABSTRACT, ADDRESSES = {port}, {name!r}, {addresses()!r}\n"
        head, method, tail = path.read_text().partition("    def fit_model(self):\n")
        path.write_text(head.replace("DIGITS =", constants + "DIGITS =") + method + GREED + tail)

    words = [
        FLOPS,
        "try",
        make_repository(place / "greedy", change),
        "--data",
        data,
        "--learners",
        "1",
        "--rounds",
        "1",
    ]
    words += ["--memory", "1GB", "--tmp", "64MiB", "--processes", "400", "--logs", "--json"]
    done = run(*words, seconds=LATER, env=environment)
    told = dict(re.findall(r"greed: (\w+) (.*)", done.stderr))
    assert told["refused"] == "True ['lo']"
    assert told["tmp"] == "64"
    assert 100 < int(told["threads"]) < 400
    assert told["hog"] == str(signal.SIGKILL.value)
    assert told["rights"] == "0000000000000000 0000000000000000 1"
    assert seen == []
    result = json.loads(done.stdout)
    assert result["limits"] == {"memory": 10**9, "tmp": 64 * 1024**2, "processes": 400}
    assert len(result["rounds"]) == 1


def test_an_interrupted_federation_leaves_no_container(place, podman, environment, repository, data):
    def containers():
        return podman.do("ps", "--all", "--quiet").split()

    assert containers() == []
    log = place / "interrupted.log"
    words = [FLOPS, "try", repository, "--data", data, "--learners", "1", "--rounds", "10000"]
    with background(words, log, env=environment) as process:
        wait_until(lambda: "round 1/" in log.read_text(), seconds=LATER, process=process, said=log.read_text)
        assert len(containers()) == 3
        process.send_signal(signal.SIGINT)
        assert process.wait(SOON) == 130
    assert containers() == []
