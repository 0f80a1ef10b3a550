"""The main job with its outer parts replaced: no network, no apt, no uv; checkout, layers, images and places are real."""

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from concurrent.futures import Future
from pathlib import Path

import httpx
import pytest

from flops.actors import Actor
from flops.base import Base
from flops.base.bytecode import Interpreter
from flops.errors import Adjustment, BaseUnavailable, Cancelled, LayerConflict, NoWheel, StructureError
from flops.images import runtime
from flops.locking.lock import Lock, LockedWheel
from flops.oci.artifacts import Content
from flops.oci.client import RegistryClient
from flops.oci.image import parse_config, parse_index, parse_manifest
from flops.oci.layer import LayerWriter
from flops.oci.layout import Layout
from flops.platforms import Platform
from flops.progress import Silent, Stage
from flops.publishing.local_targets import LayoutTarget
from flops.publishing.registry_target import RegistryTarget
from flops.recipe import Compression, Flavor, Recipe
from flops.registry.app import EmbeddedRegistry
from flops.repair.pythons import PythonChoice
from flops.repair.resolve import Resolution
from flops.repository.source import parse_source
from flops.request import Request
from flops.settings import Settings
from flops.store.shared import media_type
from flops.use_cases import parts
from flops.use_cases.build import build
from flops.use_cases.check import check
from flops.wheels.wheel_cache import WheelCache

AMD64, ARM64 = Platform.LINUX_AMD64, Platform.LINUX_ARM64
MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
FULL = ".".join(map(str, sys.version_info[:3]))
OURS = PythonChoice(version=FULL, minor=MINOR, glibc=(2, 36), provider="debian", suite="bookworm")
OTHER = PythonChoice(version="3.99.1", minor="3.99", glibc=(2, 41), provider="debian", suite="trixie")
MODEL_MANAGER = """\
import thing
from flops_utils.ml_repo_templates import ModelManagerTemplate
from sklearn.linear_model import SGDClassifier


class ModelManager(ModelManagerTemplate):
    def set_model_data(self): ...
    def get_model(self): ...
    def get_model_parameters(self): ...
    def set_model_parameters(self, parameters): ...
    def fit_model(self): ...
    def evaluate_model(self): ...
"""
DATA_MANAGER = """\
from flops_utils.ml_repo_templates import DataManagerTemplate


class DataManager(DataManagerTemplate):
    def _prepare_data(self): ...
    def get_data(self): ...
"""


class Ours(Interpreter):
    """The Python of these tests in the place of a base's."""

    def command(self, arguments):
        return [sys.executable, *map(str, arguments)]

    @property
    def home(self):
        return Path(sys.base_prefix)


class World:
    """What lies outside: an index of small wheels, bases, and locks that are simply there."""

    def __init__(self):
        self.files = {}
        self.started = []
        self.locks = {
            platform: self.lock(platform, [self.wheel("numpy"), self.wheel("thing")]) for platform in Platform
        }
        self.runtime = {platform: self.lock(platform, [self.wheel("flwr")]) for platform in Platform}
        self.python = OURS
        self.choices = [OURS, OTHER]
        self.adjustments = ()
        self.failures = {}
        """What a room raises, by its name: base, resolve."""

    def wheel(self, name, files=None):
        info = f"{name}-1.0.dist-info"
        content = {f"{name}/__init__.py": f"NAME = {name!r}\n".encode(), **(files or {})}
        content |= {f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
        content.setdefault(f"{info}/METADATA", f"Name: {name}\nVersion: 1.0\n".encode())
        rows = []
        for path, data in content.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            rows.append(f"{path},sha256={digest},{len(data)}")
        output = io.BytesIO()
        with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, data in {**content, f"{info}/RECORD": "\n".join([*rows, f"{info}/RECORD,,"]).encode()}.items():
                archive.writestr(zipfile.ZipInfo(path, (2024, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
        data = output.getvalue()
        filename = f"{name}-1.0-py3-none-any.whl"
        sha256 = hashlib.sha256(data).hexdigest()
        self.files[f"/{sha256}/{filename}"] = data
        return LockedWheel(
            name=name,
            version="1.0",
            filename=filename,
            url=f"https://index.example/{sha256}/{filename}",
            sha256=sha256,
            size=len(data),
        )

    @staticmethod
    def lock(platform, wheels):
        return Lock(platform=platform, python=FULL, wheels=tuple(sorted(wheels, key=lambda one: one.name)))

    def runtime_lock(self, platform, python):
        return Lock(platform=platform, python=python, wheels=self.runtime[platform].wheels)

    def answer(self, request):
        found = self.files.get(request.url.path)
        return httpx.Response(404) if found is None else httpx.Response(200, stream=httpx.ByteStream(found))

    def resolve(self, seen, question, *, locker, provides):
        if "resolve" in self.failures:
            raise self.failures["resolve"]
        locks = {platform: self.locks[platform] for platform in question.platforms}
        return Resolution(python=self.python, locks=locks, adjustments=self.adjustments, cuda={})


class FakeBases:
    """In the place of Bases."""

    def __init__(self, world, platforms, blobs):
        self.world = world
        self.platforms = platforms
        self.blobs = blobs

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def choices(self, wish=None):
        return self.world.choices

    def likely(self, wish):
        return self.world.choices[0]

    def notes(self, wish, choice):
        return ()

    def obtained(self, wish, choice):
        return True

    def start(self, choice):
        self.world.started.append(choice.minor)
        future = Future()
        if "base" in self.world.failures:
            future.set_exception(self.world.failures["base"])
        else:
            future.set_result({platform: self.base(platform, choice) for platform in self.platforms})
        return future

    def bases(self, choice):
        return self.start(choice).result()

    def compiler(self, choice):
        return ""

    def interpreter(self, choice):
        if choice.minor in self.world.failures:
            raise self.world.failures[choice.minor]
        return Ours(root=Path("/"), minor=choice.minor, program="usr/bin/python", loader="", libraries=())

    def base(self, platform, choice):
        with self.blobs.writer() as blob:
            writer = LayerWriter(blob)
            writer.file("etc/os-release", f"{platform} {choice.suite}\n".encode())
            layer = writer.close(comment="base")
            blob.commit(layer.digest)
        return Base(
            platform=platform,
            python=choice.version,
            glibc=choice.glibc,
            interpreter=f"/usr/bin/python{choice.minor}",
            layers=(layer,),
            lock="sha256:" + hashlib.sha256(str(platform).encode()).hexdigest(),
        )


@pytest.fixture
def world(monkeypatch):
    one = World()
    monkeypatch.setattr(parts, "Bases", lambda context: FakeBases(one, context.request.platforms, context.blobs))
    monkeypatch.setattr(
        parts, "WheelCache", lambda root, **_: WheelCache(root, transport=httpx.MockTransport(one.answer))
    )
    monkeypatch.setattr(parts, "resolve", one.resolve)
    monkeypatch.setattr(runtime, "lock", lambda _locker, *, platform, python, **_: one.runtime_lock(platform, python))
    return one


@pytest.fixture
def settings(tmp_path):
    return Settings(cache_dir=tmp_path / "cache", data_dir=tmp_path / "data", workers=2)


@pytest.fixture
def repository(tmp_path):
    directory = tmp_path / "digits"
    directory.mkdir()
    (directory / "model_manager.py").write_text(MODEL_MANAGER)
    (directory / "data_manager.py").write_text(DATA_MANAGER)
    (directory / "requirements.txt").write_text("numpy\nmlflow\nscikit-learn\n")
    commit(directory)
    return directory


def commit(directory):
    who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "Digits"]):
        subprocess.run(["git", *who, *words], cwd=directory, check=True, timeout=60)


def request(repository, *platforms, recipe=None, **more):
    return Request(
        source=parse_source(str(repository)), platforms=platforms or (AMD64, ARM64), recipe=recipe or Recipe(), **more
    )


class Told(Silent):
    def __init__(self):
        self.stages = []
        self.warnings = []
        self.adjustments = []

    def stage(self, stage, message):
        self.stages.append(stage)
        return super().stage(stage, message)

    def warning(self, stage, message, *, hint=""):
        self.warnings.append((stage, message))

    def adjusted(self, adjustment):
        self.adjustments.append(adjustment)


def comments(place, result, actor, platform):
    blobs = Layout(place.root).blobs
    manifest = parse_manifest(blobs.read(result.images[actor].platforms[platform].digest))
    return parse_config(blobs.read(manifest.config.digest)).comments


def test_both_actors_for_all_platforms(world, settings, repository, tmp_path):
    place, told = LayoutTarget(tmp_path / "images"), Told()
    result = build(request(repository), place, settings=settings, reporter=told)
    assert told.stages == [
        Stage.CLONE,
        Stage.CHECK,
        Stage.RESOLVE,
        Stage.FETCH,
        Stage.ASSEMBLE,
        Stage.VERIFY,
        Stage.PUSH,
    ]
    assert set(result.images) == set(Actor)
    for actor, image in result.images.items():
        assert image.reference == f"local/digits/{actor.value}:{result.commit}"
        assert set(image.platforms) == {AMD64, ARM64}
        found = parse_index(Layout(place.root).blobs.read(image.digest))
        assert {one.platform: one.digest for one in found.manifests} == {
            platform: one.digest for platform, one in image.platforms.items()
        }
        assert comments(place, result, actor, ARM64) == (
            "base",
            "flwr 1.0",
            "FL runtime, every machine, bytecode",
            *(layer for layer in comments(place, result, actor, AMD64)[3:-3]),
            "FLOps shims",
            "ML repository",
            f"{actor.value} actor",
        )
    document = result.to_json()
    assert set(document) == {
        "repository",
        "commit",
        "recipe",
        "registry",
        "images",
        "python",
        "adjustments",
        "findings",
        "seconds",
        "bytes",
    }
    assert set(document["images"]["learner"]["platforms"]["linux/arm64"]) == {
        "layer_sizes",
        "digest",
        "layers",
        "bytes",
        "uncompressed_bytes",
    }
    assert list(document["seconds"]) == [
        "clone",
        "check",
        "resolve",
        "fetch",
        "assemble",
        "verify",
        "push",
        "total",
    ]
    assert document["bytes"]["downloaded"] == sum(map(len, world.files.values()))
    assert [(one["code"], one["package"]) for one in document["adjustments"]] == [("REMOVED", "mlflow")]
    assert [one.package for one in told.adjustments] == ["mlflow"]
    assert document["python"] == {"requested": None, "used": FULL, "provider": "debian"}


def test_adjustments_of_the_doctor_follow_those_of_the_file(world, settings, repository, tmp_path):
    moved = Adjustment(
        code="PIN_RELAXED", package="numpy", before="", after="==1.0", path="requirements.txt", line=1, reason="x"
    )
    world.adjustments = (moved,)
    result = build(request(repository), LayoutTarget(tmp_path / "images"), settings=settings)
    assert [one.package for one in result.adjustments] == ["mlflow", "numpy"]


def test_the_flavor_is_told_by_the_request_or_by_the_imports(world, settings, repository, tmp_path):
    for recipe, flavor in ((Recipe(), "sklearn"), (Recipe(flavor=Flavor.KERAS), "keras")):
        place = LayoutTarget(tmp_path / flavor)
        result = build(request(repository, AMD64, recipe=recipe), place, settings=settings)
        blobs = Layout(place.root).blobs
        found = parse_index(blobs.read(result.images[Actor.LEARNER].digest))
        assert found.annotations["io.flops.flavor"] == flavor


def untitled(summary):
    """A manifest tells its layers' digests and sizes, not what they hold."""
    document = summary.to_json()
    assert [set(one) for one in document["layer_sizes"]] == [{"digest", "bytes", "title"}] * document["layers"]
    return document | {"layer_sizes": [(one["digest"], one["bytes"]) for one in document["layer_sizes"]]}


def test_matching_images_are_not_built_again(world, settings, repository, tmp_path):
    place = LayoutTarget(tmp_path / "images")
    first = build(request(repository), place, settings=settings)
    world.started.clear()
    world.failures["resolve"] = AssertionError("nothing is to be resolved")
    told = Told()
    again = build(request(repository, ARM64), LayoutTarget(tmp_path / "images"), settings=settings, reporter=told)
    assert told.stages == [Stage.CLONE, Stage.CHECK]
    assert world.started == []
    assert again.python is None
    assert again.to_json()["python"] is None
    for actor in Actor:
        assert again.images[actor].digest == first.images[actor].digest
        (platform,) = again.images[actor].platforms
        assert platform is ARM64
        assert untitled(again.images[actor].platforms[ARM64]) == untitled(first.images[actor].platforms[ARM64])
    assert again.bytes["downloaded"] == again.bytes["uploaded"] == 0


@pytest.mark.parametrize("flag", ["force", "upgrade"])
def test_force_and_upgrade_build_all_the_same(world, settings, repository, tmp_path, flag):
    place = LayoutTarget(tmp_path / "images")
    first = build(request(repository), place, settings=settings)
    again = build(request(repository, **{flag: True}), place, settings=settings)
    assert again.python is not None
    assert {actor: one.digest for actor, one in again.images.items()} == {
        actor: one.digest for actor, one in first.images.items()
    }


def test_another_recipe_has_a_tag_of_its_own(world, settings, repository, tmp_path):
    place, told = LayoutTarget(tmp_path / "images"), Told()
    first = build(request(repository), place, settings=settings)
    recipe = Recipe(compression=Compression.ZSTD)
    second = build(request(repository, recipe=recipe), place, settings=settings, reporter=told)
    assert second.images[Actor.LEARNER].reference == f"local/digits/learner:{first.commit}-{recipe.short}"
    layout = Layout(place.root)
    assert layout.read(f"local/digits/learner:{first.commit}").digest == first.images[Actor.LEARNER].digest
    assert any("another recipe" in message for _, message in told.warnings)


def test_code_that_changed_fetches_nothing(world, settings, repository, tmp_path):
    place = LayoutTarget(tmp_path / "images")
    first = build(request(repository), place, settings=settings)
    (repository / "model_manager.py").write_text(MODEL_MANAGER + "\n# changed\n")
    commit(repository)
    world.files.clear()
    second = build(request(repository), place, settings=settings)
    assert second.commit != first.commit
    assert second.bytes["downloaded"] == 0
    layers = []
    for result in (first, second):
        manifest = parse_manifest(Layout(place.root).blobs.read(result.images[Actor.LEARNER].platforms[AMD64].digest))
        layers.append([one.digest for one in manifest.layers])
    assert [one == other for one, other in zip(*layers, strict=True)].count(False) == 1


def test_another_python_than_the_likely_one(world, settings, repository, tmp_path):
    """The likely Python's base and runtime were begun; the images hold nothing of them."""
    world.choices = [OTHER, OURS]
    world.failures["3.99"] = BaseUnavailable("there is no such suite")
    place = LayoutTarget(tmp_path / "images")
    result = build(request(repository, AMD64), place, settings=settings)
    assert result.python.used == FULL
    assert world.started[0] == "3.99"
    world.choices = [OURS]
    only = build(request(repository, AMD64), LayoutTarget(tmp_path / "only"), settings=settings)
    assert only.images[Actor.LEARNER].digest == result.images[Actor.LEARNER].digest


def test_two_packages_with_one_module_that_is_imported(world, settings, repository, tmp_path):
    other = world.wheel("other", {"thing/__init__.py": b"NAME = 'another'\n"})
    world.locks = {platform: world.lock(platform, [*lock.wheels, other]) for platform, lock in world.locks.items()}
    place = LayoutTarget(tmp_path / "images")
    with pytest.raises(LayerConflict, match=r"thing/__init__\.py"):
        build(request(repository), place, settings=settings)
    assert Layout(place.root).references() == {}
    result = build(request(repository, verify=False), place, settings=settings)
    assert result.images


def test_two_packages_with_one_file_that_nobody_imports(world, settings, repository, tmp_path):
    tests = {"tests/__init__.py": b"# another\n"}
    wheels = [world.wheel("numpy", {"tests/__init__.py": b""}), world.wheel("thing"), world.wheel("other", tests)]
    world.locks = {platform: world.lock(platform, wheels) for platform in Platform}
    told = Told()
    build(request(repository), LayoutTarget(tmp_path / "images"), settings=settings, reporter=told)
    ((stage, message),) = told.warnings
    assert stage is Stage.VERIFY
    assert "tests/__init__.py" in message


# --- failures ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("room", "error"),
    [
        ("base", BaseUnavailable("no apt", hint="--base-image")),
        ("resolve", NoWheel("psutil 5.9.8 has no wheel for linux/arm64", hint="6.0.0 has one")),
    ],
)
def test_a_failure_leaves_what_stood(world, settings, repository, tmp_path, room, error):
    place = LayoutTarget(tmp_path / "images")
    build(request(repository), place, settings=settings)
    before = (place.root / "index.json").read_bytes()
    world.failures[room] = error
    with pytest.raises(type(error)) as caught:
        build(request(repository, force=True), place, settings=settings)
    assert caught.value is error
    assert (place.root / "index.json").read_bytes() == before
    assert not list((settings.cache_dir / ".partial").iterdir())


def test_a_structure_that_is_wrong_ends_it_before_anything_is_begun(world, settings, repository, tmp_path):
    (repository / "model_manager.py").unlink()
    with pytest.raises(StructureError) as caught:
        build(request(repository), LayoutTarget(tmp_path / "images"), settings=settings)
    assert [one.path for one in caught.value.findings] == ["model_manager.py"]
    assert world.started == []


def test_the_callers_leave_is_asked_before_names_move(world, settings, repository, tmp_path):
    place = LayoutTarget(tmp_path / "images")
    asked = []

    def stop(move):
        asked.append(Layout(place.root).references())
        raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        build(request(repository), place, settings=settings, before_tags=stop)
    assert asked == [{}]
    assert Layout(place.root).references() == {}


@pytest.fixture
def server(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)  # no test here cuts the power
        with EmbeddedRegistry(tmp_path / "registry") as running:
            yield running


class Refusing(httpx.BaseTransport):
    """A registry that takes no tag, or that is ended (Cancelled) at the request for one."""

    def __init__(self, tag, error=None):
        self.inner, self.tag, self.error = httpx.HTTPTransport(), tag, error
        self.refused = 0

    def handle_request(self, request):
        if request.method == "PUT" and request.url.path.endswith(f"/manifests/{self.tag}"):
            self.refused += 1
            if self.error is not None:
                raise self.error
            return httpx.Response(403)
        return self.inner.handle_request(request)

    def close(self):
        self.inner.close()


def test_the_next_build_moves_the_tag_that_an_ended_one_did_not(world, settings, repository, server):
    """With its caller's leave, and a registry that refuses costs a warning."""
    words = ["git", "rev-parse", "HEAD"]
    revision = subprocess.run(
        words, cwd=repository, check=True, timeout=60, capture_output=True, text=True
    ).stdout.strip()
    transport = Refusing(revision, Cancelled("ended"))
    with RegistryClient(server.registry, transport=transport) as client, pytest.raises(Cancelled):
        build(request(repository), RegistryTarget(client), settings=settings)
    transport = Refusing(revision)
    with RegistryClient(server.registry, transport=transport) as client:
        told = Told()
        result = build(request(repository), RegistryTarget(client), settings=settings, reporter=told)
        assert (result.python, transport.refused) == (None, 1)
        ((stage, message),) = told.warnings
        assert stage is Stage.PUSH
        assert revision[:12] in message
    asked = []
    with RegistryClient(server.registry) as client:
        for _ in range(2):
            result = build(request(repository), RegistryTarget(client), settings=settings, before_tags=asked.append)
            assert result.python is None
            for actor in Actor:
                found = client.get_manifest(f"local/digits/{actor.value}", revision)
                assert found.digest == result.images[actor].digest
    exact = result.images[Actor.LEARNER].reference.rpartition(":")[2]
    assert [move.tags for move in asked] == [(exact, revision)] * 2, "also where nothing is to be moved"
    assert {actor: one.digest for actor, one in asked[0].images.items()} == {
        actor: one.digest for actor, one in result.images.items()
    }


# --- reuse through the registry ---------------------------------------------------------------------------------------
def elsewhere(tmp_path, name, **more):
    """The settings of another machine: an empty cache."""
    return Settings(cache_dir=tmp_path / name / "cache", data_dir=tmp_path / name / "data", workers=2, **more)


def change(repository, text):
    (repository / "data_manager.py").write_text(f"{DATA_MANAGER}\n# {text}\n")
    commit(repository)


def layers(client, result, actor=Actor.LEARNER, platform=ARM64):
    name = f"local/digits/{actor.value}"
    found = client.get_manifest(name, result.images[actor].platforms[platform].digest)
    return [layer.digest for layer in parse_manifest(found.document).layers]


def test_another_machine_takes_what_was_made(world, settings, repository, tmp_path, server):
    with RegistryClient(server.registry) as client:
        first = build(request(repository), RegistryTarget(client), settings=settings)
        change(repository, "other code")
        world.files.clear()  # nothing can be fetched any more
    with RegistryClient(server.registry) as client:
        told, other = Told(), elsewhere(tmp_path, "other")
        second = build(request(repository), RegistryTarget(client), settings=other, reporter=told)
        assert told.warnings == []
        assert second.bytes["downloaded"] == 0
        assert second.commit != first.commit
        for actor in Actor:
            for platform in (AMD64, ARM64):
                one, two = layers(client, first, actor, platform), layers(client, second, actor, platform)
                assert [*one[:-2], one[-1]] == [*two[:-2], two[-1]]
                assert one[-2] != two[-2]
        assert not (other.cache_dir / "wheels").exists()
        assert not (other.cache_dir / "layers").exists()


@pytest.mark.parametrize("who", ["first", "second"])
def test_who_reuses_nothing_neither_asks_nor_tells(world, settings, repository, tmp_path, server, who):
    local = {"reuse": "local"}
    with RegistryClient(server.registry) as client:
        machine = elsewhere(tmp_path, "first", **(local if who == "first" else {}))
        build(request(repository), RegistryTarget(client), settings=machine)
        tags = client.tags("flops/cache")
        assert (tags == ()) is (who == "first")
        change(repository, "other code")
        machine = elsewhere(tmp_path, "second", **(local if who == "second" else {}))
        second = build(request(repository), RegistryTarget(client), settings=machine)
        assert second.bytes["downloaded"] == sum(map(len, world.files.values()))
        assert (client.tags("flops/cache") == tags) is (who == "second")


def test_what_a_build_did_not_make_itself_it_does_not_record(world, settings, repository, tmp_path, server):
    build(request(repository), LayoutTarget(tmp_path / "images"), settings=settings)
    with RegistryClient(server.registry) as client:
        build(request(repository), RegistryTarget(client), settings=settings)
        assert [tag for tag in client.tags("flops/cache") if tag.startswith("layer-")] == []


class NoMounts(httpx.BaseTransport):
    """A registry that mounts nothing: what is reused has to pass through this machine."""

    def __init__(self):
        self.inner = httpx.HTTPTransport()
        self.read = 0

    def handle_request(self, request):
        if "mount=" in str(request.url):
            return httpx.Response(405)
        self.read += request.method == "GET" and "/blobs/" in request.url.path
        return self.inner.handle_request(request)

    def close(self):
        self.inner.close()


def test_without_mounts_layers_pass_through_this_machine(world, settings, repository, tmp_path, server):
    with RegistryClient(server.registry) as client:
        first = build(request(repository), RegistryTarget(client), settings=settings)
    other = tmp_path / "elsewhere" / "figures"
    other.parent.mkdir()
    repository.rename(other)
    world.files.clear()
    transport = NoMounts()
    with RegistryClient(server.registry, transport=transport) as client:
        second = build(request(other), RegistryTarget(client), settings=elsewhere(tmp_path, "other"))
        assert second.bytes["downloaded"] == 0
        assert transport.read > 0
        for actor in Actor:  # the same commit: but for its labels, the same image
            found = client.get_manifest(f"local/figures/{actor.value}", second.images[actor].platforms[AMD64].digest)
            assert [one.digest for one in parse_manifest(found.document).layers] == layers(client, first, actor, AMD64)


def test_a_record_that_lies_makes_the_build_begin_again_without(world, settings, repository, tmp_path, server):
    """Its diff id is another layer's, which shows when the bytes are read: an image with it could not be pulled."""
    with RegistryClient(server.registry) as client:
        first = build(request(repository), RegistryTarget(client), settings=settings)
        for tag in client.tags("flops/cache"):
            found = client.get_artifact("flops/cache", tag)
            record = json.loads(found.content)
            if tag.startswith("layer-"):
                record["content"]["diff_id"] = "sha256:" + "0" * 64
                content = Content(data=json.dumps(record).encode(), media_type=found.blobs[0].media_type)
                client.put_artifact("flops/cache", tag, media_type("layer"), content, blobs=found.blobs[1:])
    other = tmp_path / "elsewhere" / "figures"
    other.parent.mkdir()
    repository.rename(other)
    told = Told()
    with RegistryClient(server.registry, transport=NoMounts()) as client:
        second = build(request(other), RegistryTarget(client), settings=elsewhere(tmp_path, "other"), reporter=told)
        assert [message for _, message in told.warnings if "begins again without" in message]
        assert second.bytes["downloaded"] > 0
        found = client.get_manifest("local/figures/learner", second.images[Actor.LEARNER].platforms[AMD64].digest)
        assert [one.digest for one in parse_manifest(found.document).layers] == layers(client, first, platform=AMD64)
        config = client.get_blob("local/figures/learner", parse_manifest(found.document).config.digest)
        with config as pieces:
            assert "sha256:" + "0" * 64 not in parse_config(b"".join(pieces)).diff_ids


def test_a_build_keeps_the_caches_bound(world, settings, repository, tmp_path):
    bounded = elsewhere(tmp_path, "other", cache_bytes=0)
    build(request(repository), LayoutTarget(tmp_path / "images"), settings=bounded)
    assert not list(bounded.cache_dir.glob("wheels/*/*.whl"))
    assert list((tmp_path / "images").rglob("blobs/sha256/*"))


# --- check ------------------------------------------------------------------------------------------------------------
def test_check_ends_with_the_locks(world, settings, repository):
    told = Told()
    report = check(request(repository), settings=settings, reporter=told)
    assert told.stages == [Stage.CLONE, Stage.CHECK, Stage.RESOLVE]
    assert world.started == []
    document = report.to_json()
    assert document["locks"] == {
        platform.value: [
            {"name": wheel.name, "version": "1.0", "bytes": wheel.size} for wheel in world.locks[platform].wheels
        ]
        for platform in (AMD64, ARM64)
    }
    assert set(document) == {
        "repository",
        "commit",
        "recipe",
        "python",
        "adjustments",
        "findings",
        "locks",
        "seconds",
        "sizes",
        "accelerator",
        "rebuild",
    }
    assert [one["package"] for one in document["adjustments"]] == ["mlflow"]


def test_check_fails_as_build_does(world, settings, repository):
    world.failures["resolve"] = NoWheel("psutil has none")
    with pytest.raises(NoWheel):
        check(request(repository), settings=settings)
