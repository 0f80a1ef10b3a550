"""The client against docker's registry as against our own, and other people's clients against our own."""

import base64
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import nullcontext

import httpx
import pytest
import trustme
from tests.ports import unused_port

from flops.errors import DeletesUnsupported, RegistryAuth, RegistryRefused, RegistryUnreachable
from flops.oci.blobs import BlobStore
from flops.oci.client import RegistryClient
from flops.oci.credentials import Credential, FixedCredentials, UserCredentials
from flops.oci.image import INDEX, ImageConfig, ImageIndex, compose, index
from flops.oci.layer import LayerWriter
from flops.oci.reference import Reference, Registry
from flops.platforms import Platform
from flops.prune.removal import foretell
from flops.prune.retention import Pruning, Removal
from flops.recipe import Compression
from flops.registry.app import EmbeddedRegistry

pytestmark = pytest.mark.integration

ANN = Credential(username="ann", password="correct horse")
#: A line of a htpasswd file (bcrypt).
HTPASSWD = "ann:$2b$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2\n"


def need(*programs):
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def run(*words, check=True, **options):
    done = subprocess.run(
        [str(word) for word in words], check=False, capture_output=True, text=True, timeout=120, **options
    )
    if check:
        assert done.returncode == 0, f"{words}: {done.stderr}"
    return done


class DockerRegistry:
    """Debian's docker-registry on a free port of the loopback, stopped with its context."""

    deletes = "true"

    def __init__(self, place, *settings):
        need("docker-registry")
        self.port = unused_port()
        self.place = place
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.yml").write_text(
            "\n".join(
                [
                    "version: 0.1",
                    "log: {level: error}",
                    f"storage: {{filesystem: {{rootdirectory: {place}/data}}, delete: {{enabled: {self.deletes}}}}}",
                    *settings,
                    f"http: {{addr: '127.0.0.1:{self.port}'{self.tls()}}}",
                ]
            )
        )

    def tls(self):
        return ""

    def __enter__(self):
        log = (self.place / "log").open("wb")
        self.process = subprocess.Popen(
            ["docker-registry", "serve", self.place / "config.yml"], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        log.close()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.05)
        self.__exit__()
        raise AssertionError((self.place / "log").read_text())

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)

    @property
    def registry(self):
        return Registry.parse(f"127.0.0.1:{self.port}")


@pytest.fixture(params=["embedded", "docker-registry"])
def server(request, tmp_path):
    make = EmbeddedRegistry if request.param == "embedded" else DockerRegistry
    with make(tmp_path / "registry") as running:
        yield running


@pytest.fixture
def embedded(tmp_path):
    with EmbeddedRegistry(tmp_path / "registry") as running:
        yield running


@pytest.fixture
def client(server):
    with RegistryClient(server.registry) as client:
        yield client


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "store")


def make_layer(store: BlobStore, path, content, compression=Compression.GZIP):
    with store.writer() as blob:
        writer = LayerWriter(blob, compression=compression)
        writer.file(path, content)
        layer = writer.close()
        blob.commit(layer.digest)
    return layer


@pytest.fixture
def image(store: BlobStore):
    big = make_layer(store, "big", os.urandom(8_000_000))
    shared = [make_layer(store, f"shared/{number}", os.urandom(50_000)) for number in range(6)]
    images = []
    for platform in Platform:
        own = make_layer(store, "own", platform.value.encode() * 1000, Compression.ZSTD)
        config = ImageConfig(platform=platform, created="2024-01-01T00:00:00Z", labels={"a": "b"}, command=("/big",))
        images.append(compose(config, [big, *shared, own]))
    return index(images, {"io.flops.recipe": "r"})


def assert_whole(client: RegistryClient, name, reference, whole, place):
    found = client.get_manifest(name, reference)
    assert (found.digest, found.media_type, found.document) == (whole.digest, INDEX, whole.document)
    for expected in whole.images:
        pulled = client.pull(
            Reference(registry=client.registry, repository=name, tag=reference), BlobStore(place), expected.platform
        )
        assert (pulled.manifest, pulled.config) == (expected.manifest, expected.config)
        assert [one.diff_id for one in pulled.layers] == [one.diff_id for one in expected.layers]
        assert [one.uncompressed_size for one in pulled.layers] == [one.uncompressed_size for one in expected.layers]


def test_push_and_pull(client: RegistryClient, store: BlobStore, image: ImageIndex, tmp_path):
    client.ping()
    seen = []
    report = client.push_index(
        "acme/digits/learner",
        image,
        store,
        ["v1", "v2"],
        before_tags=lambda: seen.append(client.tags("acme/digits/learner")),
    )
    assert (report.uploaded_blobs, report.reused_blobs) == (11, 0)
    assert seen == [()]
    assert client.tags("acme/digits/learner") == ("v1", "v2")
    assert_whole(client, "acme/digits/learner", "v1", image, tmp_path / "out")
    assert_whole(client, "acme/digits/learner", "v2", image, tmp_path / "out")


def test_the_second_repository_mounts_and_the_second_push_reuses(server, store: BlobStore, image: ImageIndex, tmp_path):
    with RegistryClient(server.registry) as client:
        client.push_index("acme/learner", image, store, ["v1"])
        report = client.push_index("acme/aggregator", image, store, ["v1"])
        assert (report.uploaded_blobs, report.mounted_blobs) == (0, 11)
    with RegistryClient(server.registry) as client:
        report = client.push_index("acme/third", image, store, ["v1"], mount_from=["acme/learner"])
        assert (report.uploaded_blobs, report.mounted_blobs) == (2, 9)
        report = client.push_index("acme/third", image, store, ["v1"])
        assert client.push_index("acme/learner", image, store, ["v1"]).uploaded == 0
        assert_whole(client, "acme/third", "v1", image, tmp_path / "out")


def test_a_blob_that_was_lost_is_pushed_again(
    client: RegistryClient, server, store: BlobStore, image: ImageIndex, tmp_path
):
    client.push_blobs("acme/a", image.layers, store)
    lost = httpx.delete(f"{server.registry.url}/v2/acme/a/blobs/{image.layers[1].digest}")
    assert lost.status_code == 202
    client.push_index("acme/a", image, store, ["v1"])
    assert_whole(client, "acme/a", "v1", image, tmp_path / "out")


def test_what_is_not_there(client: RegistryClient):
    assert client.get_manifest("no/such", "v1") is None
    assert not client.has_blob("no/such", "sha256:" + "0" * 64)
    assert client.tags("no/such") == ()
    assert client.images("no/such", "v1") is None


@pytest.mark.parametrize("reference", [".INVALID_MANIFEST_NAME", "absent"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_name_that_is_no_tag_names_no_manifest(server, method, reference):
    answer = httpx.request(method, f"{server.registry.url}/v2/acme/a/manifests/{reference}")
    assert answer.status_code == 404


def test_a_mount_without_from_mounts_or_begins_an_upload(
    client: RegistryClient, server, store: BlobStore, image: ImageIndex
):
    client.push_index("acme/a", image, store, ["v1"])
    digest = image.layers[0].digest
    answer = httpx.post(f"{server.registry.url}/v2/acme/b/blobs/uploads/", params={"mount": digest})
    assert answer.status_code == (201 if isinstance(server, EmbeddedRegistry) else 202)
    assert client.has_blob("acme/b", digest) is (answer.status_code == 201)


def test_both_registries_hold_the_same_documents(store: BlobStore, image: ImageIndex, tmp_path):
    documents = []
    with EmbeddedRegistry(tmp_path / "ours") as ours, DockerRegistry(tmp_path / "docker") as docker:
        for server in (ours, docker):
            with RegistryClient(server.registry) as client:
                client.push_index("acme/a", image, store, ["v1"])
                found = client.images("acme/a", "v1")
                documents.append(
                    [client.get_manifest("acme/a", "v1").document]
                    + [
                        part
                        for platform in sorted(found)
                        for part in (found[platform].manifest, found[platform].config)
                    ]
                )
    assert documents[0] == documents[1]


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def guarded(tmp_path, authority):
    """docker-registry with TLS and a login."""
    need("docker-registry")
    place = tmp_path / "guarded"
    place.mkdir()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(place / "server.pem")
    authority.cert_pem.write_to_path(place / "ca.pem")
    (place / "users").write_text(HTPASSWD)

    class Guarded(DockerRegistry):
        def tls(self):
            return f", tls: {{certificate: {place}/server.pem, key: {place}/server.pem}}"

        @property
        def registry(self):
            return Registry.parse(f"https://127.0.0.1:{self.port}")

    with Guarded(place, f"auth: {{htpasswd: {{realm: test, path: {place}/users}}}}") as running:
        yield running


def test_a_login_over_tls(guarded, store: BlobStore, image: ImageIndex, tmp_path):
    known = FixedCredentials(by_host={guarded.registry.host: ANN})
    wrong = FixedCredentials(by_host={guarded.registry.host: Credential(username="ann", password="no")})
    bundle = guarded.place / "ca.pem"
    with RegistryClient(guarded.registry, credentials=known, verify=bundle) as client:
        client.push_index("acme/a", image, store, ["v1"])
        assert_whole(client, "acme/a", "v1", image, tmp_path / "out")
    for credentials, told in ((None, "no login for"), (wrong, "wrong or has ended")):
        stranger = RegistryClient(guarded.registry, credentials=credentials, verify=bundle)
        with stranger, pytest.raises(RegistryAuth) as caught:
            stranger.push_index("acme/a", image, store, ["v1"])
        assert told in caught.value.hint
        assert f"docker login {guarded.registry.host}" in caught.value.hint
    with RegistryClient(guarded.registry, credentials=known) as client:
        with pytest.raises(RegistryUnreachable, match=guarded.registry.host) as caught:
            client.ping()
        assert "FLOPS_CA_BUNDLE" in caught.value.hint


def test_a_login_at_the_embedded_registry(tmp_path):
    """By its token flow, and with a login that may only read."""
    with EmbeddedRegistry(tmp_path / "registry", token="secret") as running:
        for credential, told in (
            (None, "no login for"),
            (Credential(username="ann", password="no"), "wrong or has ended"),
        ):
            credentials = FixedCredentials(by_host={running.registry.host: credential}) if credential else None
            with (
                RegistryClient(running.registry, credentials=credentials) as client,
                pytest.raises(RegistryAuth) as caught,
            ):
                client.check_push(["acme/a"])
            assert told in caught.value.hint


@pytest.mark.parametrize(("deletes", "refused"), [("true", False), ("false", True)])
def test_whether_a_registry_deletes_is_known_before(
    deletes, refused, store: BlobStore, image: ImageIndex, tmp_path, monkeypatch
):
    monkeypatch.setattr(DockerRegistry, "deletes", deletes)
    removal = Removal(repository="acme/a", tags={}, indexes=(image.digest,), manifests=(), referrers={})
    pruning = Pruning(removals=(removal,), builds=(), shared=(), freed=0)
    with DockerRegistry(tmp_path / "registry") as running, RegistryClient(running.registry) as client:
        client.push_index("acme/a", image, store, ["v1"])
        with pytest.raises(DeletesUnsupported) if refused else nullcontext():
            foretell(client, pruning)
        assert client.get_manifest("acme/a", "v1").digest == image.digest


def test_a_full_registry_is_told_as_one(store: BlobStore, image: ImageIndex, tmp_path):
    """Docker's says 500 and hides the reason in a detail."""
    place = tmp_path / "registry"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", place], check=False, capture_output=True
    ).returncode:
        pytest.skip("a small disk can't be mounted here")
    try:
        with DockerRegistry(place) as running, RegistryClient(running.registry) as client:
            with pytest.raises(RegistryRefused, match="has no room left") as caught:
                client.push_index("acme/a", image, store, ["v1"])
            assert "prune" in caught.value.hint
            assert str(tmp_path) not in caught.value.message
    finally:
        run("umount", place)


# --- other people's clients against the embedded registry ---
def test_skopeo_inspects_copies_and_deletes(embedded: EmbeddedRegistry, store: BlobStore, image: ImageIndex, tmp_path):
    need("skopeo")
    with RegistryClient(embedded.registry) as client:
        client.push_index("acme/digits/learner", image, store, ["v1"])
        name = f"docker://{embedded.registry.host}/acme/digits"
        assert (
            run("skopeo", "inspect", "--tls-verify=false", "--raw", f"{name}/learner:v1").stdout.encode()
            == image.document
        )
        told = json.loads(
            run("skopeo", "inspect", "--tls-verify=false", "--override-arch=arm64", f"{name}/learner:v1").stdout
        )
        assert (told["Architecture"], told["Labels"], told["RepoTags"]) == ("arm64", {"a": "b"}, ["v1"])
        run("skopeo", "copy", "--all", "--src-tls-verify=false", f"{name}/learner:v1", f"oci:{tmp_path}/layout:v1")
        run("skopeo", "copy", "--all", "--dest-tls-verify=false", f"oci:{tmp_path}/layout:v1", f"{name}/copy:v1")
        assert_whole(client, "acme/digits/copy", "v1", image, tmp_path / "out")
        run("skopeo", "delete", "--tls-verify=false", f"{name}/copy:v1")
        assert client.get_manifest("acme/digits/copy", "v1") is None


@pytest.fixture
def storage():
    """Options for a storage of its own; its path must be short (podman takes a runroot of 50 characters)."""
    place = tempfile.mkdtemp(prefix="flops-")
    yield ("--root", f"{place}/root", "--runroot", f"{place}/run", "--storage-driver", "vfs")
    shutil.rmtree(place, ignore_errors=True)


def test_podman_pulls_and_pushes(embedded: EmbeddedRegistry, store: BlobStore, image: ImageIndex, storage):
    need("podman", "runc")
    podman = ("podman", *storage, "--runtime", "runc")
    with RegistryClient(embedded.registry) as client:
        client.push_index("acme/a", image, store, ["v1"])
        name = f"{embedded.registry.host}/acme/a"
        own = next(one for one in image.images if one.platform is Platform.host())
        run(*podman, "pull", "--tls-verify=false", f"{name}:v1")
        run(*podman, "pull", "--tls-verify=false", f"{name}@{image.digest}")
        told = json.loads(run(*podman, "image", "inspect", f"{name}:v1").stdout)[0]
        assert told["RootFS"]["Layers"] == [layer.diff_id for layer in own.layers]
        run(*podman, "push", "--tls-verify=false", f"{name}:v1", f"{embedded.registry.host}/acme/pushed:v1")
        pushed = client.images("acme/pushed", "v1")[Platform.host()]
        assert pushed.parsed_config.diff_ids == tuple(layer.diff_id for layer in own.layers)


def test_buildah_pulls(embedded: EmbeddedRegistry, store: BlobStore, image: ImageIndex, storage):
    need("buildah")
    with RegistryClient(embedded.registry) as client:
        client.push_index("acme/a", image, store, ["v1"])
    run("buildah", *storage, "pull", "--tls-verify=false", f"{embedded.registry.host}/acme/a:v1")
    assert "acme/a" in run("buildah", *storage, "images").stdout


def test_a_login_file_of_skopeo_is_understood(guarded, tmp_path):
    need("skopeo")
    path = tmp_path / "auth.json"
    run(
        "skopeo", "login", "--authfile", path, "--tls-verify=false", "-u", ANN.username, "-p", ANN.password,
        f"127.0.0.1:{guarded.port}",
    )  # fmt: skip
    assert UserCredentials(files=(path,)).find(guarded.registry.host) == ANN
    assert base64.b64decode(json.loads(path.read_text())["auths"][guarded.registry.host]["auth"]).startswith(b"ann:")
