"""`flops images` on docker's registry: what is kept after a pruning and its own garbage collection is whole to other programs."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import httpx
import pytest
from tests.ports import unused_port

from flops.actors import Actor
from flops.oci.blobs import BlobStore
from flops.oci.client import RegistryClient
from flops.oci.image import ImageConfig, compose, parse_manifest
from flops.oci.layer import LayerWriter
from flops.oci.reference import Registry
from flops.oci.signature import SigningKey, signature_tag
from flops.platforms import Platform
from flops.publishing.delivery import Delivery
from flops.publishing.registry_target import RegistryTarget
from flops.records import BUILD, Part, Record
from flops.records.attach import Attachments

pytestmark = pytest.mark.integration

RECIPE = "sha256:" + "ab" * 32
SOON = 30.0


def need(*programs):
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def run(*words, **options):
    return subprocess.run(
        [str(word) for word in words], check=False, capture_output=True, text=True, timeout=120, **options
    )


class DockersRegistry:
    """On a free port of the loopback, with or without deletes."""

    def __init__(self, place, *, deletes):
        need("docker-registry")
        self.port = unused_port()
        place.mkdir()
        self.config = place / "config.yml"
        self.config.write_text(
            "version: 0.1\nlog: {level: error}\n"
            f"storage: {{filesystem: {{rootdirectory: {place}/data}}, delete: {{enabled: {str(deletes).lower()}}}}}\n"
            f"http: {{addr: '127.0.0.1:{self.port}'}}\n"
        )
        self.data = place / "data"

    def __enter__(self):
        words = ["docker-registry", "serve", str(self.config)]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + SOON
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{self.port}/v2/")
            except httpx.HTTPError:
                assert time.monotonic() < end, "docker-registry does not listen"
                time.sleep(0.05)
            else:
                return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(SOON)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def name(self):
        return f"127.0.0.1:{self.port}"

    def collect(self):
        done = run("docker-registry", "garbage-collect", self.config)
        assert done.returncode == 0, done.stderr

    def size(self):
        return sum(path.stat().st_size for path in (self.data / "docker/registry/v2/blobs").rglob("data"))


def publish(registry, store: BlobStore, number, key):
    """One build's images, records and signatures, as a build puts them in place."""
    commit = f"{number:040x}"
    created = f"2026-01-{number + 1:02d}T00:00:00Z"

    def layer(name, data):
        with store.writer() as blob:
            writer = LayerWriter(blob)
            writer.file(name, data)
            made = writer.close(comment=name)
            blob.commit(made.digest)
        return made

    shared = layer("shared", b"shared by all builds" * 1000)
    own = layer(f"own-{number}", os.urandom(50_000))
    labels = {
        "io.flops.recipe": RECIPE,
        "org.opencontainers.image.revision": commit,
        "org.opencontainers.image.created": created,
    }
    images = {
        actor: tuple(
            compose(
                ImageConfig(platform=platform, created=created, labels={**labels, "io.flops.actor": actor.value}),
                [shared, own, layer("actor", f"{actor.value} {platform}".encode())],
            )
            for platform in Platform
        )
        for actor in Actor
    }

    def records(subjects):
        data = json.dumps(subjects, sort_keys=True).encode()
        part = Part(title="build.json", media_type=BUILD, data=data, platforms=tuple(Platform))
        yield Record(artifact_type=BUILD, parts=(part,), built=created)

    def refused(reason):
        raise AssertionError(reason)

    with RegistryClient(Registry.parse(registry)) as client:
        return RegistryTarget(client).publish(
            Delivery(
                repository="acme/digits",
                images=images,
                annotations=lambda actor, _locks: {**labels, "io.flops.actor": actor.value},
                locks=dict.fromkeys(Platform, ""),
                tags=(commit, f"{commit}-{RECIPE[7:19]}"),
                store=store,
                attachments=Attachments(make=records, created=created, refused=refused, key=key),
            )
        )


def flops(*words):
    return run(sys.executable, "-m", "flops.cli.main", "images", *words)


@pytest.fixture
def key(tmp_path):
    need("openssl")
    made = run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout")
    path = tmp_path / "key.pem"
    path.write_text(made.stdout)
    (tmp_path / "key.pub").write_text(run("openssl", "pkey", "-in", path, "-pubout").stdout)
    return path


def test_what_is_kept_is_whole_after_the_registrys_own_collection(tmp_path, key):
    need("skopeo")
    store = BlobStore(tmp_path / "store")
    with DockersRegistry(tmp_path / "registry", deletes=True) as registry:
        published = [publish(registry.name, store, number, SigningKey.read(key, None)) for number in range(3)]
        done = flops("prune", "--keep", "1", "--older", "0", "--registry", registry.name, "--json", "--quiet")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert [one["commit"] for one in told["builds"]] == [f"{number:040x}" for number in range(2)]
        # each build: two indexes; of each, two platforms, a record, a signature and the list of referrers
        assert told["removed"] == {"indexes": 4, "manifests": 4 * 5, "shared": 0}
        before = registry.size()
        registry.collect()
        assert before - registry.size() >= 2 * 50_000
        assert told["freed"] >= 2 * 50_000
        listed = json.loads(flops("list", "--registry", registry.name, "--json").stdout)
        (kept,) = listed["builds"]
        assert kept["commit"] == f"{2:040x}"
    # the registry remembers what it had before its collection: a fresh process knows the disk alone
    with registry:
        for image in published[2].values():
            copy = tmp_path / image.digest[7:19]
            done = run(
                "skopeo", "copy", "--all", "--src-tls-verify=false", f"docker://{image.reference}", f"dir:{copy}"
            )
            assert done.returncode == 0, done.stderr
            shown = json.loads(flops("show", image.reference, "--json").stdout)
            assert shown["records"].keys() == {BUILD}
            assert flops("verify", image.reference, "--key", tmp_path / "key.pub").returncode == 0


def test_cosigns_form_is_one_that_openssl_verifies(tmp_path, key):
    store = BlobStore(tmp_path / "store")
    with DockersRegistry(tmp_path / "registry", deletes=False) as registry:
        image = publish(registry.name, store, 1, SigningKey.read(key, None))[Actor.LEARNER]
        with RegistryClient(Registry.parse(registry.name)) as client:
            found = client.get_manifest("acme/digits/learner", signature_tag(image.digest))
            (layer,) = parse_manifest(found.document).layers
            with client.get_blob("acme/digits/learner", layer.digest) as pieces:
                payload = b"".join(pieces)
        assert json.loads(payload)["critical"] == {
            "identity": {"docker-reference": f"{registry.name}/acme/digits/learner"},
            "image": {"docker-manifest-digest": image.digest},
            "type": "cosign container image signature",
        }
        assert layer.media_type == "application/vnd.dev.cosign.simplesigning.v1+json"
        (tmp_path / "payload").write_bytes(payload)
        signature = base64.b64decode(layer.annotations["dev.cosignproject.cosign/signature"])
        (tmp_path / "signature").write_bytes(signature)
        words = ("openssl", "dgst", "-sha256", "-verify", "key.pub", "-signature", "signature", "payload")
        assert run(*words, cwd=tmp_path).stdout.strip() == "Verified OK"


def test_a_registry_without_deletes_is_told_and_keeps_all(tmp_path, key):
    store = BlobStore(tmp_path / "store")
    with DockersRegistry(tmp_path / "registry", deletes=False) as registry:
        for number in range(2):
            publish(registry.name, store, number, None)
        done = flops("prune", "--keep", "1", "--older", "0", "--registry", registry.name)
        assert done.returncode == 7
        assert "REGISTRY_DELETES" in done.stderr
        assert len(json.loads(flops("list", "--registry", registry.name, "--json").stdout)["builds"]) == 2
