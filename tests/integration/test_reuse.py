"""What one builder made, another one uses, through the registry alone: no wheel, no package, no interpreter, no upload."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from flops.oci.artifacts import Content
from flops.oci.blobs import BlobStore
from flops.oci.client import RegistryClient
from flops.oci.image import parse_index, parse_manifest
from flops.oci.reference import Registry
from flops.registry.app import EmbeddedRegistry

pytestmark = pytest.mark.integration

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits-sklearn"
ACTORS = ("learner", "aggregator")
#: A second project uploads less than this part of the first one's bytes; changed code less than so many.
PART, CODE = 0.01, 100_000
#: Nothing but this machine can be reached.
CUT_OFF = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
CUT_OFF |= dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")


class DockerRegistry:
    """Debian's docker-registry on a free port, as it comes: no referrers, deletes refused."""

    def __init__(self, place):
        if shutil.which("docker-registry") is None:
            pytest.skip("docker-registry is not installed")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.root = place / "data"
        place.mkdir(parents=True)
        self.config = place / "config.yml"
        self.config.write_text(
            f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {self.root}}}}}\n"
            f"http: {{addr: '127.0.0.1:{self.port}'}}\n"
        )

    def __enter__(self):
        with self.config.with_name("log").open("wb") as log:
            words = ["docker-registry", "serve", str(self.config)]
            self.child = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while time.monotonic() < end and self.child.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.05)
        self.__exit__()
        raise AssertionError(self.config.with_name("log").read_text())

    def __exit__(self, *_):
        self.child.terminate()
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait(10)

    @property
    def registry(self):
        return Registry.parse(f"127.0.0.1:{self.port}")


def git(directory, *words):
    who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=directory, check=True, timeout=60)


def write_project(directory, text=""):
    """The example, with other code where `text` is given."""
    shutil.copytree(EXAMPLE, directory, ignore=shutil.ignore_patterns("data", "__pycache__"))
    git(directory, "init", "--quiet")
    change(directory, text)
    return directory


def change(directory, text):
    with (directory / "model_manager.py").open("a") as file:
        file.write(f"\n# {text}\n")
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--message", "Digits")


def build(project, server, cache, *words, alone=False, seconds=600):
    """The result's JSON, and what stood on stderr."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLOPS_")}
    ours = {"FLOPS_CACHE_DIR": str(cache), "FLOPS_DATA_DIR": str(cache.parent / "data"), "UV_PYTHON_DOWNLOADS": "never"}
    place = ["--registry", server.registry.host, "--json", *words]
    done = subprocess.run(
        [sys.executable, "-m", "flops.cli.main", "build", str(project), *place],
        env={**inherited, **ours, **(CUT_OFF if alone else {})},
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        error = json.loads(done.stdout)["error"]
        if error["code"] in ("INDEX_UNREACHABLE", "BASE_UNAVAILABLE") and not alone:
            pytest.skip(f"nothing can be downloaded here: {error['message']}")
        pytest.fail(done.stderr)
    return json.loads(done.stdout), done.stderr


def stored(server):
    """Bytes that the registry has on its disk."""
    files = [path.stat() for path in server.root.rglob("*") if path.is_file()]
    return sum({told.st_ino: told.st_size for told in files}.values())


def layers(client: RegistryClient, result, actor):
    """Each platform's layers, as the registry has them."""
    name = result["images"][actor]["reference"].partition("/")[2].rpartition(":")[0]
    whole = parse_index(client.get_manifest(name, result["images"][actor]["digest"]).document)
    found = {
        str(one.platform): parse_manifest(client.get_manifest(name, one.digest).document) for one in whole.manifests
    }
    return {platform: [layer.digest for layer in one.layers] for platform, one in found.items()}


def copy_images(source: RegistryClient, target: RegistryClient, store: BlobStore):
    """Everything that one registry has, into another one."""

    def copy(name, reference):
        found = source.get_manifest(name, reference)
        document = json.loads(found.document)
        for entry in document.get("manifests", []):
            copy(name, entry["digest"])
        for entry in [document[key] for key in ("config",) if key in document] + document.get("layers", []):
            digest = entry["digest"]
            if not store.has(digest):
                source.fetch_blob(name, digest, partial(write, digest))
            target.push_blob(name, digest, entry["size"], partial(store.open, digest))
        target.put_manifest(name, reference, found.media_type, found.document)

    def write(digest, pieces):
        with store.writer() as blob:
            for piece in pieces:
                blob.write(piece)
            blob.commit(digest)

    for name in source.catalog():
        for tag in source.tags(name):
            copy(name, tag)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A first project's images in a registry."""

    server: object
    result: dict
    stored: int
    """Bytes on the registry's disk."""
    downloads: Path
    """A cache directory that holds its wheels alone."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("first")
    with DockerRegistry(place / "registry") as server:
        before = stored(server)
        result, _ = build(write_project(place / "digits"), server, place / "cache")
        for name in ("layers", "locks", "bases", "blobs", "provides"):
            shutil.rmtree(place / "cache" / name)
        yield Made(server=server, result=result, stored=stored(server) - before, downloads=place / "cache")


@pytest.fixture(params=["docker-registry", "embedded"])
def server(request, made, tmp_path):
    """A registry with the first project in it."""
    if request.param == "docker-registry":
        yield made.server
        return
    with (
        EmbeddedRegistry(tmp_path / "registry") as running,
        RegistryClient(running.registry) as target,
        RegistryClient(made.server.registry) as source,
    ):
        copy_images(source, target, BlobStore(tmp_path / "copied"))
        yield running


def differing(client: RegistryClient, first, second):
    """By actor and platform, which layers of two builds are not the same, and how many there are."""
    for actor in ACTORS:
        one, other = layers(client, first, actor), layers(client, second, actor)
        assert one.keys() == other.keys() == first["images"][actor]["platforms"].keys()
        for platform, digests in one.items():
            pairs = zip(digests, other[platform], strict=True)
            yield [number for number, pair in enumerate(pairs) if len({*pair}) > 1], len(digests)


def test_a_second_project_takes_everything_from_the_registry(server, made, tmp_path):
    """Other code, the same pins, another machine that reaches nothing but the registry."""
    cache, project = tmp_path / "cache", write_project(tmp_path / "figures", "other code")
    before = stored(server)
    second, told = build(project, server, cache, alone=True)
    assert second["bytes"]["downloaded"] == 0
    assert second["bytes"]["uploaded"] < PART * made.result["bytes"]["uploaded"]
    assert stored(server) - before < PART * made.stored
    assert "warning" not in told
    assert not (cache / "wheels").exists()
    assert sum(path.stat().st_size for path in cache.rglob("blobs/*/*")) < CODE, "no layer came to this machine"
    with RegistryClient(server.registry) as client:
        for numbers, count in differing(client, made.result, second):
            assert numbers == [count - 2], "all but the repository's own, which lies below the actor's"

    for empty in (False, True):
        if empty:
            shutil.rmtree(cache)
        change(project, f"changed, {empty}")
        before = stored(server)
        changed, told = build(project, server, cache, alone=True)
        assert changed["commit"] != second["commit"]
        assert changed["bytes"]["downloaded"] == 0
        assert changed["bytes"]["uploaded"] < CODE
        assert stored(server) - before < CODE
        assert "warning" not in told


def test_poisoned_records_are_ignored_and_made_anew(made, tmp_path):
    """Somebody wrote garbage, and another layer's record, in the place of two: a builder warns and mends them."""
    project, type_ = write_project(tmp_path / "poisoned"), "application/vnd.flops.layer.v1+json"
    sound, _ = build(project, made.server, tmp_path / "cache", alone=True)
    with RegistryClient(made.server.registry) as client:
        tags = [tag for tag in client.tags("flops/cache") if tag.startswith("layer-")]
        records = {tag: client.get_artifact("flops/cache", tag).content for tag in tags}
        names = {json.loads(text)["content"]["comment"].partition(" ")[0]: tag for tag, text in records.items()}
        for tag, data in ((names["numpy"], b"\x00garbage"), (names["scipy"], records[names["numpy"]])):
            client.put_artifact("flops/cache", tag, type_, Content(data=data, media_type=type_))
        again, told = build(project, made.server, made.downloads, "--force", alone=True)
        assert told.count("is ignored") == 2
        assert [again["images"][actor] for actor in ACTORS] == [sound["images"][actor] for actor in ACTORS]
        assert again["bytes"]["downloaded"] == 0
        assert len(list((made.downloads / "layers").iterdir())) == 2, "no more was made than had to"
        for name in ("numpy", "scipy"):
            mended = json.loads(client.get_artifact("flops/cache", names[name]).content)
            assert mended["content"] == json.loads(records[names[name]])["content"]
