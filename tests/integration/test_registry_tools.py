"""Other people's clients against the embedded registry, with and without its token, and its likeness to docker's."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import pytest
from tests.ports import unused_port

from flops.oci.artifacts import Content
from flops.oci.blobs import BlobStore, sha256
from flops.oci.client import RegistryClient
from flops.oci.credentials import Credential, FixedCredentials, UserCredentials
from flops.oci.descriptor import INDEX, Descriptor
from flops.oci.image import ImageConfig, ImageIndex, compose, index
from flops.oci.layer import LayerWriter
from flops.oci.reference import Registry
from flops.platforms import Platform
from flops.registry.app import EmbeddedRegistry

pytestmark = pytest.mark.integration

TOKEN = "correct horse battery"
PLAIN = "--tls-verify=false"


def need(*programs):
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def run(*words, check=True, **options):
    done = subprocess.run([str(word) for word in words], check=False, capture_output=True, timeout=120, **options)
    assert not check or done.returncode == 0, f"{words}: {done.stderr.decode()}"
    return done


def make_layer(store: BlobStore, path, content):
    with store.writer() as blob:
        writer = LayerWriter(blob)
        writer.file(path, content)
        layer = writer.close()
        blob.commit(layer.digest)
    return layer


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return BlobStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def image(store: BlobStore):
    shared = [make_layer(store, "big", os.urandom(1_500_000)), make_layer(store, "small", b"x" * 1000)]
    images = [
        compose(
            ImageConfig(platform=platform, created="2024-01-01T00:00:00Z", labels={"a": "b"}, command=("/big",)),
            [*shared, make_layer(store, "own", platform.value.encode())],
        )
        for platform in Platform
    ]
    return index(images, {"io.flops.recipe": "r"})


class Side:
    """A registry, and how its clients log in."""

    def __init__(self, place, *, token="", private=False):
        self.place = place
        self.token = token
        self.server = EmbeddedRegistry(place / "registry", token=token, private=private)
        self.auth = place / "auth.json"

    def __enter__(self):
        self.server.__enter__()
        self.host = self.server.registry.host
        return self

    def __exit__(self, *error):
        self.server.__exit__(*error)

    def login(self, program, password=None, *, check=True):
        """By the program itself; its file is then ours to read, too."""
        words = (program, "login", "--authfile", self.auth, PLAIN, "-u", "anybody", "--password-stdin", self.host)
        return run(*words, input=(password or self.token).encode(), check=check)

    @property
    def option(self):
        return ("--authfile", self.auth) if self.token else ()

    def client(self) -> RegistryClient:
        known = FixedCredentials(by_host={self.host: Credential(username="us", password=self.token)})
        return RegistryClient(self.server.registry, credentials=known if self.token else None)


@pytest.fixture(params=["open", "token", "private"])
def side(request, tmp_path):
    options = {"open": {}, "token": {"token": TOKEN}, "private": {"token": TOKEN, "private": True}}[request.param]
    with Side(tmp_path, **options) as running:
        if running.token:
            need("skopeo")
            running.login("skopeo")
        yield running


@pytest.fixture
def storage():
    """Options for a storage of its own; its path must be short (podman takes a runroot of 50 characters)."""
    place = tempfile.mkdtemp(prefix="flops-")
    yield ("--root", f"{place}/root", "--runroot", f"{place}/run", "--storage-driver", "vfs")
    shutil.rmtree(place, ignore_errors=True)


def test_skopeo_copies_inspects_lists_and_deletes(side: Side, store: BlobStore, image: ImageIndex, tmp_path):
    need("skopeo")
    name = f"docker://{side.host}/acme/digits"
    with side.client() as client:
        client.push_index("acme/digits", image, store, ["v1"])
        assert run("skopeo", "inspect", PLAIN, *side.option, "--raw", f"{name}:v1").stdout == image.document
        told = json.loads(run("skopeo", "list-tags", PLAIN, *side.option, name).stdout)
        assert told["Tags"] == ["v1"]
        into = f"oci:{tmp_path}/layout:v1"
        run("skopeo", "copy", "--all", "--src-tls-verify=false", *side.option, f"{name}:v1", into)
        run("skopeo", "copy", "--all", "--dest-tls-verify=false", *side.option, into, f"{name}/copy:v2")
        assert client.get_manifest("acme/digits/copy", "v2").document == image.document
        run("skopeo", "delete", PLAIN, *side.option, f"{name}/copy:v2")
        assert client.get_manifest("acme/digits/copy", "v2") is None
        assert client.get_manifest("acme/digits", "v1").digest == image.digest


def test_podman_pulls_by_tag_and_digest_and_pushes(side: Side, store: BlobStore, image: ImageIndex, storage):
    need("podman", "runc")
    podman = ("podman", *storage, "--runtime", "runc")
    own = next(one for one in image.images if one.platform is Platform.host())
    name = f"{side.host}/acme/a"
    with side.client() as client:
        client.push_index("acme/a", image, store, ["v1"])
        run(*podman, "pull", PLAIN, *side.option, f"{name}:v1")
        run(*podman, "pull", PLAIN, *side.option, f"{name}@{image.digest}")
        told = json.loads(run(*podman, "image", "inspect", f"{name}:v1").stdout)[0]
        assert told["RootFS"]["Layers"] == [layer.diff_id for layer in own.layers]
        run(*podman, "push", PLAIN, *side.option, f"{name}:v1", f"{side.host}/acme/pushed:v1")
        pushed = client.images("acme/pushed", "v1")[Platform.host()]
        assert pushed.parsed_config.diff_ids == tuple(layer.diff_id for layer in own.layers)


def test_buildah_pulls_and_pushes(side: Side, store: BlobStore, image: ImageIndex, storage):
    need("buildah")
    with side.client() as client:
        client.push_index("acme/a", image, store, ["v1"])
        run("buildah", *storage, "pull", PLAIN, *side.option, f"{side.host}/acme/a:v1")
        into = f"docker://{side.host}/acme/b:v1"
        run("buildah", *storage, "push", PLAIN, *side.option, f"{side.host}/acme/a:v1", into)
        assert client.tags("acme/b") == ("v1",)


@pytest.mark.parametrize("program", ["skopeo", "podman", "buildah"])
def test_a_login_takes_the_token_alone(tmp_path, program):
    need(program)
    with Side(tmp_path, token=TOKEN) as side:
        assert side.login(program, "a wrong one", check=False).returncode != 0
        side.login(program)
        with RegistryClient(side.server.registry, credentials=UserCredentials(files=(side.auth,))) as client:
            client.check_push(["acme/a"])


def test_without_a_login_an_open_registry_is_read_and_a_private_one_is_not(
    tmp_path, store: BlobStore, image: ImageIndex
):
    need("skopeo")
    for private in (False, True):
        with Side(tmp_path / str(private), token=TOKEN, private=private) as side:
            with side.client() as client:
                client.push_index("acme/a", image, store, ["v1"])
            name = f"docker://{side.host}/acme/a"
            nobody = {**os.environ, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
            read = run("skopeo", "inspect", PLAIN, "--raw", f"{name}:v1", check=False, env=nobody)
            assert (read.returncode == 0) is not private
            written = run(
                "skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false",
                f"{name}:v1", f"{name}:v2", check=False, env=nobody,
            )  # fmt: skip
            assert written.returncode != 0
            assert not (side.place / "registry/repositories/acme/a/_tags/v2").exists()


class DockerRegistry:
    """Debian's docker-registry on a free port of the loopback, stopped with its context."""

    def __init__(self, place):
        need("docker-registry")
        self.place = place
        place.mkdir()
        self.port = unused_port()
        (place / "config.yml").write_text(
            "version: 0.1\nlog: {level: error}\n"
            f"storage: {{filesystem: {{rootdirectory: {place}/data}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: '127.0.0.1:{self.port}'}}\n"
        )

    def __enter__(self):
        self.process = subprocess.Popen(
            ["docker-registry", "serve", self.place / "config.yml"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        self.registry = Registry.parse(f"127.0.0.1:{self.port}")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.05)
        self.__exit__()
        raise AssertionError("docker-registry did not start")

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(10)


def push_everything(client: RegistryClient, store: BlobStore, image: ImageIndex):
    """An image over platforms, a mount, an artifact with a blob, and three referrers; the subject."""
    client.push_index("acme/a", image, store, ["v1", "v2"])
    client.push_index("acme/b", image, store, ["v1"], mount_from=["acme/a"])
    layer = image.layers[0]
    client.push_blob("flops/cache", layer.digest, layer.size, lambda: store.open(layer.digest), mount_from=["acme/a"])
    held = Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size)
    record = Content(data=b'{"layer": 1}')
    client.put_artifact("flops/cache", "layer-" + "0" * 64, "application/vnd.flops.layer.v1+json", record, blobs=[held])
    subject = Descriptor(media_type=INDEX, digest=image.digest, size=len(image.document))
    for number in range(3):
        content = Content(data=b'{"number": %d}' % number * (1 if number else 10_000))
        client.put_referrer("acme/a", subject, f"text/x-{number % 2}", content, annotations={"n": str(number)})
    return subject


def test_both_registries_hold_the_same_manifests_to_the_byte(tmp_path, store: BlobStore, image: ImageIndex):
    held = []
    with EmbeddedRegistry(tmp_path / "ours") as ours, DockerRegistry(tmp_path / "docker") as docker:
        for server in (ours, docker):
            with RegistryClient(server.registry) as client:
                subject = push_everything(client, store, image)
                referrers = client.referrers("acme/a", subject.digest)
                assert {entry.annotations["n"] for entry in referrers} == {"0", "1", "2"}
                assert len(client.referrers("acme/a", subject.digest, "text/x-1")) == 1
                names = [
                    *(("acme/a", tag) for tag in ("v1", "v2", *(one.digest for one in image.images))),
                    ("acme/b", "v1"),
                    ("flops/cache", "layer-" + "0" * 64),
                    *(("acme/a", entry.digest) for entry in referrers),
                ]
                held.append({name: client.get_manifest(*name).document for name in names})
                assert {"acme/a", "acme/b", "flops/cache"} <= set(client.catalog())
                record = client.get_artifact("flops/cache", "layer-" + "0" * 64)
                assert (record.content, record.blobs[1].digest) == (b'{"layer": 1}', image.layers[0].digest)
    assert held[0] == held[1]


@pytest.mark.parametrize("kind", [EmbeddedRegistry, DockerRegistry])
def test_referrers_come_and_go(kind, tmp_path, store: BlobStore, image: ImageIndex):
    """On docker-registry 2.8, which has no list of referrers, by the tag's index."""
    with kind(tmp_path / "registry") as server, RegistryClient(server.registry) as client:
        subject = push_everything(client, store, image)
        gone = client.referrers("acme/a", subject.digest, "text/x-1")[0]
        assert client.delete_manifest("acme/a", gone.digest, subject=subject.digest)
        assert not client.delete_manifest("acme/a", gone.digest, subject=subject.digest)
        assert gone.digest not in {entry.digest for entry in client.referrers("acme/a", subject.digest)}
        assert len(client.referrers("acme/a", subject.digest)) == 2


@pytest.mark.parametrize("kind", [EmbeddedRegistry, DockerRegistry])
def test_an_upload_in_chunks(kind, tmp_path, store: BlobStore, image: ImageIndex):
    layer = max(image.layers, key=lambda layer: layer.size)
    with kind(tmp_path / "registry") as server, RegistryClient(server.registry, chunk=400_000) as client:
        client.push_blob("acme/a", layer.digest, layer.size, lambda: store.open(layer.digest))
        got = []
        client.fetch_blob("acme/a", layer.digest, lambda pieces: got.append(b"".join(pieces)))
        assert sha256(got[-1]) == layer.digest


@pytest.mark.parametrize("kind", [EmbeddedRegistry, DockerRegistry])
def test_asking_whether_a_push_could_succeed_leaves_nothing(kind, tmp_path):
    with kind(tmp_path / "registry") as server, RegistryClient(server.registry) as client:
        client.check_push(["acme/learner", "acme/aggregator"])
        assert client.catalog() == ()
        assert client.tags("acme/learner") == ()
        answer = httpx.get(f"{server.registry.url}/v2/acme/learner/tags/list")
        assert answer.status_code == 404


def test_a_build_that_may_not_push_ends_before_any_work(tmp_path):
    """Nothing is locked, fetched or made: no index, no mirror and no registry is asked for anything else."""
    sample = Path(__file__).parents[2] / "examples" / "digits-sklearn"
    nothing = "http://127.0.0.1:9/"
    with Side(tmp_path, token=TOKEN) as side:
        environment = {
            **os.environ,
            "HOME": str(tmp_path),
            "XDG_RUNTIME_DIR": str(tmp_path),
            "FLOPS_CACHE_DIR": str(tmp_path / "cache"),
            "FLOPS_INDEX_URL": nothing,
            "FLOPS_DEBIAN_MIRROR": nothing,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        words = (sys.executable, "-m", "flops.cli.main", "build", sample, "--registry", side.host, "--json")
        done = run(*words, check=False, env=environment)
        assert done.returncode == 7, done.stderr.decode()
        assert json.loads(done.stdout)["error"]["code"] == "REGISTRY_AUTH"
    assert not list((tmp_path / "cache").rglob("*.whl"))
