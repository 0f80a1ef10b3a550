"""Where images go: names move last, indexes only gain platforms, and what stands there is told."""

import fcntl
import json
import os
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

import pytest

from flops.actors import Actor
from flops.errors import Cancelled, OutputError, RegistryAuth, RegistryUnreachable, UnknownPlatform
from flops.images import compose
from flops.images.compose import LOCK, UNPACKED, Identity, index_annotations
from flops.oci.blobs import BlobStore
from flops.oci.client import RegistryClient
from flops.oci.image import ImageConfig
from flops.oci.image import compose as compose_layers
from flops.oci.layer import LayerWriter
from flops.oci.layout import Layout
from flops.oci.reference import Registry
from flops.platforms import Platform
from flops.progress import Silent
from flops.publishing import naming
from flops.publishing.delivery import Delivery
from flops.publishing.local_targets import ArchiveTarget, EngineTarget, LayoutTarget
from flops.publishing.registry_target import RegistryTarget
from flops.recipe import Compression, Recipe
from flops.registry.app import EmbeddedRegistry
from flops.use_cases.build import BackgroundCall

AMD64, ARM64 = Platform.LINUX_AMD64, Platform.LINUX_ARM64
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "acme/digits"
LOCKS = {AMD64: "sha256:" + "1" * 64, ARM64: "sha256:" + "2" * 64}


class Warnings(Silent):
    def __init__(self):
        self.seen = []

    def warning(self, stage, message, *, hint=""):
        self.seen.append((message, hint))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)  # no test here cuts the power
        with EmbeddedRegistry(tmp_path_factory.mktemp("registry")) as running:
            yield running


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "store")


@pytest.fixture
def client(server):
    """Each test has a corner of the registry."""
    prefix = f"t{os.urandom(6).hex()}"
    with RegistryClient(Registry.parse(f"{server.registry.host}/{prefix}")) as one:
        yield one


def layer(store, content):
    with store.writer() as blob:
        writer = LayerWriter(blob)
        writer.file("content", content)
        made = writer.close()
        blob.commit(made.digest)
    return made


def identity(recipe):
    return Identity(
        source="https://git.example/acme/digits",
        commit=COMMIT,
        created=datetime(2026, 1, 1, tzinfo=UTC),
        repository=REPOSITORY,
        flavor=None,
        recipe=recipe.digest,
    )


def delivery(store, *platforms, recipe=None, tags=None, content=b"", **more):
    """Both actors' images for these platforms: a layer that all share, one a platform, one an actor."""
    recipe = recipe or Recipe()
    locks = more.get("locks", LOCKS)
    images = {}
    for actor in Actor:
        made = []
        for platform in platforms:
            layers = [
                layer(store, text) for text in (b"shared" + content, str(platform).encode(), actor.value.encode())
            ]
            labels = identity(recipe).labels(actor, locks[platform])
            config = ImageConfig(platform=platform, created=identity(recipe).time, labels=labels)
            made.append(compose_layers(config, layers, {**labels, UNPACKED: "4608"}))
        images[actor] = tuple(made)
    values = {
        "repository": REPOSITORY,
        "images": images,
        "annotations": partial(index_annotations, identity(recipe)),
        "locks": {platform: locks[platform] for platform in platforms},
        "tags": tags or (COMMIT, f"{COMMIT}-{recipe.short}"),
        "store": store,
    }
    return Delivery(**(values | more))


# --- what layouts and registries share --------------------------------------------------------------------------------
@pytest.fixture(params=["layout", "registry"])
def target(request, tmp_path, client):
    """Makes targets for one and the same place, each as a run of its own has it."""
    clients = []

    def make():
        if request.param == "layout":
            return LayoutTarget(tmp_path / "images")
        clients.append(RegistryClient(client.registry))
        return RegistryTarget(clients[-1])

    yield make
    for one in clients:
        one.close()


def test_nothing_stands_in_an_empty_place(target):
    place = target()
    place.check()
    assert place.existing(REPOSITORY, Actor.LEARNER, COMMIT) is None


def test_images_of_any_name_can_be_put_there(target):
    target().check_push(REPOSITORY)


def test_a_push_that_is_not_allowed_is_told_before_any_work(tmp_path):
    with EmbeddedRegistry(tmp_path, token="secret") as guarded, RegistryClient(guarded.registry) as nobody:
        place = RegistryTarget(nobody)
        place.check()
        with pytest.raises(RegistryAuth, match=r"learner|aggregator"):
            place.check_push(REPOSITORY)


def test_a_call_aside_is_waited_for_and_raises_where_its_result_is_asked_for():
    done = []
    BackgroundCall(lambda: done.append(1)).result()
    assert done == [1]
    failing = BackgroundCall(lambda: (_ for _ in ()).throw(RegistryUnreachable("not there")))
    for _ in range(2):
        with pytest.raises(RegistryUnreachable):
            failing.result()


def test_what_was_published_stands_under_both_tags(target, store):
    one = delivery(store, AMD64, ARM64)
    published = target().publish(one)
    for actor in Actor:
        for tag in one.tags:
            found = target().existing(REPOSITORY, actor, tag)
            assert found.digest == published[actor].digest
            assert found.annotations["io.flops.actor"] == actor.value
            assert set(found.manifests) == {AMD64, ARM64}
            summary = found.summaries[ARM64]
            assert summary.digest == next(image.digest for image in one.images[actor] if image.platform is ARM64)
            assert (summary.layers, summary.uncompressed_bytes) == (3, 4608)
            assert summary.bytes == sum(part.size for part in one.images[actor][1].layers)
            assert found.locks == LOCKS
        assert published[actor].reference == target().reference(REPOSITORY, actor, COMMIT)


def test_an_index_only_gains_platforms_in_any_order(target, store, tmp_path):
    together = LayoutTarget(tmp_path / "together").publish(delivery(store, AMD64, ARM64))
    target().publish(delivery(store, ARM64))
    joined = target().publish(delivery(store, AMD64))
    assert {actor: one.digest for actor, one in joined.items()} == {
        actor: one.digest for actor, one in together.items()
    }
    again = target().publish(delivery(store, ARM64))
    assert again == joined


def test_a_rebuilt_platform_takes_the_place_of_its_former_self(target, store):
    before = target().publish(delivery(store, AMD64, ARM64))
    after = target().publish(delivery(store, AMD64, content=b", changed"))
    found = target().existing(REPOSITORY, Actor.LEARNER, COMMIT)
    assert after[Actor.LEARNER].digest == found.digest != before[Actor.LEARNER].digest
    assert set(found.manifests) == {AMD64, ARM64}


def test_bytes_are_counted(target, store):
    one = delivery(store, AMD64)
    first = target()
    first.publish(one)
    sizes = {part.digest: part.size for images in one.images.values() for part in images[0].layers}
    assert first.uploaded >= sum(sizes.values())
    second = target()
    second.publish(one)
    assert second.uploaded == 0
    assert second.reused >= sum(sizes.values())


def test_the_leave_is_asked_for_what_will_stand(target, store):
    """With the index as it will be, and the manifests of the platforms that were built."""
    target().publish(delivery(store, ARM64))
    asked = []
    one = delivery(store, AMD64, before_tags=asked.append)
    published = target().publish(one)
    (move,) = asked
    assert move.to_json() == {
        "tags": list(one.tags),
        "images": {
            actor.value: {"digest": published[actor].digest, "platforms": {"linux/amd64": one.images[actor][0].digest}}
            for actor in Actor
        },
    }


def test_before_names_move_all_else_is_in_place(target, store, tmp_path):
    one = delivery(store, AMD64, before_tags=lambda _move: (_ for _ in ()).throw(Cancelled("stop")))
    archive, engine = ArchiveTarget(tmp_path / "x.tar"), Engine()
    for place in (target(), archive, EngineTarget(engine)):
        with pytest.raises(Cancelled):
            place.publish(one)
    assert target().existing(REPOSITORY, Actor.LEARNER, COMMIT) is None
    assert not archive.path.exists()
    assert not engine.loaded


# --- layouts ----------------------------------------------------------------------------------------------------------
def test_two_that_write_one_layout_at_the_same_time_take_nothing_from_each_other(tmp_path, store, monkeypatch):
    """The second comes while the first, which has read what stands there, is about to write."""
    place, came = tmp_path / "images", threading.Event()
    lock = fcntl.flock
    with ThreadPoolExecutor(1) as pool:
        second = []

        def record(*words):
            came.set()
            lock(*words)

        def begin(_move):
            monkeypatch.setattr(fcntl, "flock", record)
            late = delivery(store, ARM64, before_tags=lambda _move: came.set())
            second.append(pool.submit(LayoutTarget(place).publish, late))
            assert came.wait(30)

        LayoutTarget(place).publish(delivery(store, AMD64, before_tags=begin))
        second[0].result(30)
    for actor in Actor:
        for tag in (COMMIT, f"{COMMIT}-{Recipe().short}"):
            assert set(LayoutTarget(place).existing(REPOSITORY, actor, tag).manifests) == {AMD64, ARM64}


@pytest.mark.parametrize("damage", ["layer", "manifest", "index", "cut layer"])
def test_what_is_not_whole_in_a_layout_does_not_stand(tmp_path, store, damage):
    place = LayoutTarget(tmp_path / "images")
    one = delivery(store, AMD64)
    place.publish(one)
    found = place.existing(REPOSITORY, Actor.LEARNER, COMMIT)
    image = one.images[Actor.LEARNER][0]
    digests = {"manifest": image.digest, "index": found.digest}
    path = Layout(place.root).blobs.path(digests.get(damage, image.layers[0].digest))
    path.unlink()
    if damage == "cut layer":
        path.write_bytes(b"cut")
    assert place.existing(REPOSITORY, Actor.LEARNER, COMMIT) is None
    assert place.publish(one)[Actor.LEARNER].digest == found.digest
    assert place.existing(REPOSITORY, Actor.LEARNER, COMMIT) == found


def test_a_layout_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file/images"):
        LayoutTarget(tmp_path / "file" / "images").check()


def test_next_steps_name_every_image(tmp_path):
    for place in (LayoutTarget(tmp_path), ArchiveTarget(tmp_path / "x.tar")):
        lines = place.next_steps(["acme/digits/learner:1", "acme/digits/aggregator:1"])
        assert sum("skopeo copy --all oci" in line for line in lines) == 2


# --- archives ---------------------------------------------------------------------------------------------------------
def test_an_archive_holds_both_images_under_all_names(tmp_path, store):
    path = tmp_path / "images.tar"
    place = ArchiveTarget(path)
    place.check()
    one = delivery(store, AMD64)
    published = place.publish(one)
    with tarfile.open(path) as archive:
        document = json.load(archive.extractfile("index.json"))
        names = {
            entry["annotations"]["org.opencontainers.image.ref.name"]: entry["digest"]
            for entry in document["manifests"]
        }
    assert names == {f"acme/digits/{actor.value}:{tag}": published[actor].digest for actor in Actor for tag in one.tags}
    assert place.uploaded == path.stat().st_size
    before = path.read_bytes()
    ArchiveTarget(path).publish(one)
    assert path.read_bytes() == before


def test_a_directory_is_no_archive(tmp_path):
    (tmp_path / "x.tar").mkdir()
    with pytest.raises(OutputError, match="is a directory"):
        ArchiveTarget(tmp_path / "x.tar").check()


# --- engines ----------------------------------------------------------------------------------------------------------
class Engine:
    program = "podman"

    def __init__(self):
        self.loaded = []

    def load(self, archive):
        with tarfile.open(archive) as file:
            self.loaded.append(json.load(file.extractfile("index.json"))["manifests"])


def test_an_engine_gets_this_machines_platform_only(store):
    engine = Engine()
    one = delivery(store, AMD64, ARM64)
    published = EngineTarget(engine).publish(one)
    assert len(engine.loaded) == 2
    host = Platform.host()
    for actor in Actor:
        own = next(image for image in one.images[actor] if image.platform is host)
        assert published[actor].digest == own.digest
        assert published[actor].reference == f"localhost/acme/digits/{actor.value}:{COMMIT}"


def test_an_engine_can_not_take_a_foreign_platform_alone(store):
    foreign = ARM64 if Platform.host() is AMD64 else AMD64
    with pytest.raises(UnknownPlatform, match="none of the images is for this machine") as caught:
        EngineTarget(Engine()).publish(delivery(store, foreign))
    assert f"--platform {Platform.host()}" in caught.value.hint


# --- registries -------------------------------------------------------------------------------------------------------
def test_tags_move_last_and_not_at_all_when_the_caller_says_stop(client, store):
    first = RegistryTarget(client).publish(delivery(store, AMD64))

    def stop(move):
        # everything is there by digest, so that nothing can fail after the caller's leave
        assert client.get_manifest(client.registry.repository(REPOSITORY, "learner"), COMMIT).digest == (
            first[Actor.LEARNER].digest
        )
        raise Cancelled("the project was cancelled")

    with pytest.raises(Cancelled):
        RegistryTarget(client).publish(delivery(store, AMD64, content=b", changed", before_tags=stop))
    for actor in Actor:
        assert RegistryTarget(client).existing(REPOSITORY, actor, COMMIT).digest == first[actor].digest


def test_an_offered_layer_is_not_pushed_again(client, store):
    one = delivery(store, AMD64)
    place = RegistryTarget(client)
    for part in one.images[Actor.LEARNER][0].layers[:2]:
        place.offer(REPOSITORY, part, store)
    name = client.registry.repository(REPOSITORY, "learner")
    assert all(client.has_blob(name, part.digest) for part in one.images[Actor.LEARNER][0].layers[:2])
    place.publish(one)
    assert set(client.tags(name)) == set(one.tags)


def test_somebody_elses_single_image_does_not_stand(client, store):
    one = delivery(store, AMD64)
    place = RegistryTarget(client)
    place.publish(one)
    name = client.registry.repository(REPOSITORY, "learner")
    image = one.images[Actor.LEARNER][0]
    client.put_manifest(name, "other", "application/vnd.oci.image.manifest.v1+json", image.manifest)
    assert place.existing(REPOSITORY, Actor.LEARNER, "other") is None


def test_the_name_for_nodes_is_the_pull_name(client, store):
    place = RegistryTarget(client, pull_name=Registry.parse("http://registry.example:5073/flops"))
    published = place.publish(delivery(store, AMD64))
    assert published[Actor.LEARNER].reference == f"registry.example:5073/flops/acme/digits/learner:{COMMIT}"
    assert "registry.example" in place.registry


def test_progress_reaches_the_whole(client, store):
    seen = []
    RegistryTarget(client).publish(delivery(store, AMD64, on_bytes=lambda done, total: seen.append((done, total))))
    done, total = seen[-1]
    assert done == total > 0


def test_an_unreachable_registry_fails_the_check():
    with RegistryClient(Registry.parse("127.0.0.1:9")) as client, pytest.raises(RegistryUnreachable):
        RegistryTarget(client).check()


# --- names ------------------------------------------------------------------------------------------------------------
class Wanted:
    """The parts of a request and a checkout that names depend on."""

    def __init__(self, *, recipe=None, platforms=(AMD64,), force=False, commit=COMMIT, source=None):
        self.recipe = recipe or Recipe()
        self.platforms = platforms
        self.force = force
        self.commit = commit
        self.source = source or "https://git.example/acme/digits"
        self.repository = REPOSITORY


def test_two_tags():
    one = Wanted()
    assert naming.tags(one, COMMIT) == (COMMIT, f"{COMMIT}-{one.recipe.short}")
    assert len(one.recipe.short) == 12


def test_what_matches_stands(target, store):
    published = target().publish(delivery(store, AMD64, ARM64))
    for platforms in ((AMD64,), (ARM64,), (AMD64, ARM64)):
        one = Wanted(platforms=platforms)
        found = naming.matching_images(one, one, target())
        assert {actor: one.digest for actor, one in found.items()} == {
            actor: one.digest for actor, one in published.items()
        }


@pytest.mark.parametrize(
    "changed",
    [
        {"platforms": (AMD64, ARM64)},
        {"recipe": Recipe(python="3.13")},
        {"commit": "f" * 40},
        {"source": "https://git.example/mallory/digits"},
    ],
)
def test_what_does_not_match_does_not_stand(target, store, changed):
    target().publish(delivery(store, AMD64))
    one = Wanted(**changed)
    assert naming.matching_images(one, one, target()) == {}


def test_one_actors_new_image_beside_the_others_old_one_does_not_stand(target, store):
    """A builder was killed between their exact tags; for a platform that both have from one build, they stand."""
    one, both = Wanted(), Wanted(platforms=(AMD64, ARM64))
    exact = naming.tags(one, COMMIT)[1]
    target().publish(delivery(store, AMD64, ARM64))
    locked = {AMD64: "sha256:" + "7" * 64}
    later = target().publish(delivery(store, AMD64, tags=("later",), locks=locked))
    target().tag(REPOSITORY, Actor.LEARNER, later[Actor.LEARNER].digest, exact)
    assert naming.matching_images(one, one, target()) == {}
    assert naming.matching_images(both, both, target()) == {}
    gained = target().publish(
        delivery(store, AMD64, ARM64, tags=("gained",), locks=LOCKS | {ARM64: "sha256:" + "8" * 64})
    )
    target().tag(REPOSITORY, Actor.LEARNER, gained[Actor.LEARNER].digest, exact)
    assert naming.matching_images(one, one, target())
    assert naming.matching_images(both, both, target()) == {}


def test_another_recipe_does_not_move_the_commits_tag_without_force(target, store):
    target().publish(delivery(store, AMD64))
    other = Recipe(compression=Compression.ZSTD)
    told = Warnings()
    one = Wanted(recipe=other)
    assert naming.free_tags(one, one, target(), told) == (f"{COMMIT}-{other.short}",)
    ((message, hint),) = told.seen
    assert "another recipe" in message
    assert "--force" in hint
    forced = Wanted(recipe=other, force=True)
    assert naming.free_tags(forced, forced, target(), told) == (COMMIT, f"{COMMIT}-{other.short}")
    same = Wanted()
    assert naming.free_tags(same, same, target(), told) == (COMMIT, f"{COMMIT}-{same.recipe.short}")


def tagged(place, tag):
    """What both actors' tags stand for, by digest."""
    found = {actor: place.existing(REPOSITORY, actor, tag) for actor in Actor}
    return {actor: one.digest if one else None for actor, one in found.items()}


def moved(place, one):
    return naming.move_commit(one, one, place, naming.matching_images(one, one, place))


@pytest.mark.parametrize("before", ["nothing", "one platform", "one actor"])
def test_commit_is_moved_to_what_stands_where_its_builder_was_ended_before(target, store, before):
    one = Wanted(platforms=(AMD64, ARM64))
    if before == "one platform":
        target().publish(delivery(store, AMD64))
    exact = delivery(store, AMD64, ARM64, tags=naming.tags(one, COMMIT)[1:])
    published = target().publish(exact)
    if before == "one actor":
        target().tag(REPOSITORY, Actor.LEARNER, published[Actor.LEARNER].digest, COMMIT)
    place = target()
    move = naming.move(one, COMMIT, naming.matching_images(one, one, place)).to_json()
    assert moved(place, one)
    digests = {actor: whole.digest for actor, whole in published.items()}
    assert tagged(place, COMMIT) == digests
    assert move["tags"] == [naming.tags(one, COMMIT)[1], COMMIT]
    assert {actor: image["digest"] for actor, image in move["images"].items()} == {
        actor.value: digest for actor, digest in digests.items()
    }
    assert set(move["images"]["learner"]["platforms"]) == {"linux/amd64", "linux/arm64"}
    assert not moved(place, one), "there is nothing left to do"


def test_commit_of_another_recipe_is_moved_by_force_alone(target, store):
    before = target().publish(delivery(store, AMD64))
    recipe = Recipe(compression=Compression.ZSTD)
    one = Wanted(recipe=recipe)
    after = target().publish(delivery(store, AMD64, recipe=recipe, tags=naming.tags(one, COMMIT)[1:]))
    assert not moved(target(), one)
    assert tagged(target(), COMMIT) == {actor: whole.digest for actor, whole in before.items()}
    assert moved(target(), Wanted(recipe=recipe, force=True))
    assert tagged(target(), COMMIT) == {actor: whole.digest for actor, whole in after.items()}


def test_commit_is_never_moved_half(target, store):
    """One actor's holds another recipe's images, or one exact tag has gained a platform and not the other: then neither is."""
    recipe = Recipe(compression=Compression.ZSTD)
    one = Wanted(recipe=recipe)
    theirs = target().publish(delivery(store, AMD64, tags=("other",)))
    target().tag(REPOSITORY, Actor.AGGREGATOR, theirs[Actor.AGGREGATOR].digest, COMMIT)
    exact = naming.tags(one, COMMIT)[1]
    target().publish(delivery(store, AMD64, recipe=recipe, tags=(exact,)))
    assert not moved(target(), one)
    assert tagged(target(), COMMIT)[Actor.LEARNER] is None

    one = Wanted()
    exact = naming.tags(one, COMMIT)[1]
    first = target().publish(delivery(store, AMD64))
    second = target().publish(delivery(store, AMD64, ARM64, tags=("later",)))
    target().tag(REPOSITORY, Actor.LEARNER, second[Actor.LEARNER].digest, exact)
    assert naming.matching_images(one, one, target())
    assert not moved(target(), one)
    assert tagged(target(), COMMIT) == {actor: whole.digest for actor, whole in first.items()}


def test_commit_keeps_a_platform_that_the_exact_tag_lacks(target, store):
    target().publish(delivery(store, AMD64, ARM64, tags=(COMMIT,)))
    before = tagged(target(), COMMIT)
    one = Wanted()
    target().publish(delivery(store, AMD64, tags=naming.tags(one, COMMIT)[1:]))
    assert not moved(target(), one)
    assert tagged(target(), COMMIT) == before


def test_a_platform_that_is_named_while_commit_is_moved_is_not_lost(client, store):
    """What is moved was read before: it is read again after."""
    one = Wanted()
    exact = naming.tags(one, COMMIT)[1]
    RegistryTarget(client).publish(delivery(store, AMD64, tags=(exact,)))
    place, came = RegistryTarget(client), []
    tag = place.tag

    def meanwhile(*words):
        if not came:
            came.append(words)
            with RegistryClient(client.registry) as other:
                RegistryTarget(other).publish(delivery(store, ARM64))
        tag(*words)

    place.tag = meanwhile
    assert moved(place, one)
    for actor in Actor:
        assert set(place.existing(REPOSITORY, actor, COMMIT).manifests) == {AMD64, ARM64}
    assert tagged(place, COMMIT) == tagged(place, exact)


def test_lock_names_agree():
    assert compose.LOCK == LOCK == "io.flops.lock"
