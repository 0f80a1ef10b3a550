"""What a manager asks of the builder's world: sources judged without asking anybody, and images that stand in a registry."""

import json
import os

import pytest

from flops.actors import Actor
from flops.errors import BadRef, BadUrl, BlockedAddress, CredentialInUrl, RegistryUnreachable
from flops.images import compose
from flops.images.compose import UNPACKED
from flops.oci.blobs import BlobStore
from flops.oci.client import RegistryClient
from flops.oci.image import ImageConfig
from flops.oci.image import compose as compose_layers
from flops.oci.layer import LayerWriter
from flops.oci.reference import Registry
from flops.platforms import Platform
from flops.publishing import naming
from flops.publishing.delivery import Delivery
from flops.publishing.registry_target import RegistryTarget
from flops.recipe import Compression, Recipe
from flops.registry.app import EmbeddedRegistry
from flops.request import Request
from flops.use_cases.lookup import ImageLookup, SourceLookup

AMD64, ARM64 = Platform.LINUX_AMD64, Platform.LINUX_ARM64
COMMIT = "0123456789abcdef0123456789abcdef01234567"
URL = "https://git.example.com/Acme/Digits"


# --- sources ---
def test_a_url_is_judged_and_named():
    place = SourceLookup().judge(URL + ".git", ref="v1", subdir="Models/a")
    assert (place.text, place.repository, place.host) == (URL + ".git", "acme/digits/models/a", "git.example.com")
    assert not place.local
    assert SourceLookup().judge("ssh://git@git.example.com:2222/a/b").host == "git.example.com:2222"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("/etc", BadUrl),
        ("file:///etc", BadUrl),
        ("git@git.example.com:a/b", BadUrl),
        ("http://git.example.com/a/b", BadUrl),
        ("ext::sh -c x", BadUrl),
        ("https://[::1]/a/b", BlockedAddress),
        ("https://169.254.169.254/a/b", BlockedAddress),
        ("https://u:p@git.example.com/a/b", CredentialInUrl),
    ],
)
def test_what_a_project_may_not_name(text, error):
    with pytest.raises(error):
        SourceLookup().judge(text)


def test_refs_are_judged_too():
    with pytest.raises(BadRef):
        SourceLookup().judge(URL, ref="--x")


def test_what_the_operator_allows(tmp_path):
    lookup = SourceLookup(allow_local=True, allow_hosts=("127.0.0.1",))
    place = lookup.judge(str(tmp_path))
    assert (place.local, place.text, place.host) == (True, str(tmp_path), "")
    assert place.repository.startswith("local/")
    assert not place.source.trusted
    assert lookup.commit(place, None) is None
    assert lookup.judge("https://127.0.0.1:8443/a/b").host == "127.0.0.1:8443"
    with pytest.raises(BlockedAddress):
        lookup.judge("https://127.0.0.2/a/b")
    with pytest.raises(BadUrl):
        lookup.judge(str(tmp_path / "nothing"))


def test_a_full_hash_is_its_own_answer():
    lookup = SourceLookup(allow_hosts=("127.0.0.1",))
    place = lookup.judge("https://127.0.0.1:1/a/b")
    assert lookup.commit(place, COMMIT.upper()) == COMMIT


# --- images ---
@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)  # no test here cuts the power
        with EmbeddedRegistry(tmp_path_factory.mktemp("registry")) as running:
            yield running


@pytest.fixture
def registry(server):
    return Registry.parse(f"{server.registry.host}/t{os.urandom(6).hex()}")


def publish(registry, store, recipe, *platforms, source=URL, actors=tuple(Actor), tags=None, repository="acme/digits"):
    """What a builder puts there for this commit."""
    identity = compose.Identity(
        source=source,
        commit=COMMIT,
        created=compose_time(),
        repository="acme/digits",
        flavor=None,
        recipe=recipe.digest,
    )
    images = {}
    for actor in actors:
        made = []
        for platform in platforms:
            with store.writer() as blob:
                writer = LayerWriter(blob)
                writer.file("content", f"{actor.value} {platform}".encode())
                layer = writer.close()
                blob.commit(layer.digest)
            labels = identity.labels(actor, "sha256:" + "1" * 64)
            config = ImageConfig(platform=platform, created=identity.time, labels=labels)
            made.append(compose_layers(config, [layer], {**labels, UNPACKED: "4608"}))
        images[actor] = tuple(made)
    with RegistryClient(registry) as client:
        RegistryTarget(client).publish(
            Delivery(
                repository=repository,
                images=images,
                annotations=lambda actor, locks: compose.index_annotations(identity, actor, locks),
                locks=dict.fromkeys(platforms, "sha256:" + "1" * 64),
                tags=tags or naming.tags(request(recipe), COMMIT),
                store=store,
            )
        )


def compose_time():
    from datetime import UTC, datetime

    return datetime(2026, 1, 1, tzinfo=UTC)


def request(recipe):
    return Request(source=SourceLookup().judge(URL).source, platforms=(AMD64,), recipe=recipe)


def test_images_that_stand_are_told_as_a_build_would(registry, tmp_path):
    recipe = Recipe()
    place = SourceLookup().judge(URL)
    lookup = ImageLookup(registry=registry, pull_name=Registry.parse("registry.test/pull"))
    assert lookup.existing(place, COMMIT, recipe, (AMD64,)) is None
    publish(registry, BlobStore(tmp_path), recipe, AMD64, ARM64)
    result = lookup.existing(place, COMMIT, recipe, (ARM64,))
    assert json.loads(json.dumps(result)) == result
    assert (result["repository"], result["commit"], result["recipe"]) == (URL, COMMIT, recipe.digest)
    assert (result["registry"], result["python"], result["adjustments"]) == ("registry.test/pull", None, [])
    for actor in ("learner", "aggregator"):
        image = result["images"][actor]
        assert image["reference"] == f"registry.test/pull/acme/digits/{actor}:{COMMIT}-{recipe.short}"
        assert list(image["platforms"]) == ["linux/arm64"]
        assert image["platforms"]["linux/arm64"]["uncompressed_bytes"] == 4608
    assert result["bytes"]["uploaded"] == 0
    assert result["bytes"]["reused"] > 0


def test_everything_must_match(registry, tmp_path):
    recipe = Recipe()
    place = SourceLookup().judge(URL)
    lookup = ImageLookup(registry=registry)
    publish(registry, BlobStore(tmp_path), recipe, AMD64)
    assert lookup.existing(place, COMMIT, recipe, (AMD64,)) is not None
    assert lookup.existing(place, COMMIT, recipe, (AMD64, ARM64)) is None
    assert lookup.existing(place, "f" * 40, recipe, (AMD64,)) is None
    assert lookup.existing(place, COMMIT, Recipe(compression=Compression.ZSTD), (AMD64,)) is None
    assert (
        lookup.existing(SourceLookup().judge("https://mirror.example.com/acme/digits"), COMMIT, recipe, (AMD64,))
        is None
    )
    assert lookup.existing(SourceLookup().judge(URL, subdir="a"), COMMIT, recipe, (AMD64,)) is None


def commits(registry):
    """Digests under COMMIT and under the exact tag, by actor."""
    with RegistryClient(registry) as client:
        found = {}
        for actor in Actor:
            name = registry.repository("acme/digits", actor.value)
            tags = [client.get_manifest(name, tag) for tag in naming.tags(request(Recipe()), COMMIT)]
            found[actor] = [one.digest if one else None for one in tags]
        return found


def test_commit_follows_images_that_stand(registry, tmp_path):
    place, lookup = SourceLookup().judge(URL), ImageLookup(registry=registry)
    assert not lookup.move_commit(place, COMMIT, Recipe(), (AMD64,)), "nothing stands"
    publish(registry, BlobStore(tmp_path), Recipe(), AMD64, tags=naming.tags(request(Recipe()), COMMIT)[1:])
    assert not lookup.move_commit(place, COMMIT, Recipe(), (AMD64, ARM64)), "this does not stand"
    assert all(commit is None for commit, _ in commits(registry).values())
    assert lookup.move_commit(place, COMMIT, Recipe(), (AMD64,))
    assert all(commit == exact for commit, exact in commits(registry).values())
    assert not lookup.move_commit(place, COMMIT, Recipe(), (AMD64,))


def test_commit_of_another_recipe_stays_without_force(registry, tmp_path):
    place, lookup, store = SourceLookup().judge(URL), ImageLookup(registry=registry), BlobStore(tmp_path)
    other = Recipe(compression=Compression.ZSTD)
    publish(registry, store, other, AMD64)
    publish(registry, store, Recipe(), AMD64, tags=naming.tags(request(Recipe()), COMMIT)[1:])
    before = commits(registry)
    assert not lookup.move_commit(place, COMMIT, Recipe(), (AMD64,))
    assert commits(registry) == before
    assert lookup.move_commit(place, COMMIT, Recipe(), (AMD64,), force=True)
    assert all(commit == exact for commit, exact in commits(registry).values())


def test_one_actor_alone_is_no_proof(registry, tmp_path):
    publish(registry, BlobStore(tmp_path), Recipe(), AMD64, actors=(Actor.LEARNER,))
    assert ImageLookup(registry=registry).existing(SourceLookup().judge(URL), COMMIT, Recipe(), (AMD64,)) is None


def test_images_of_a_directory_stand_under_its_own_name(registry, tmp_path):
    """Neither those of a URL project, nor those of another directory that lie there."""
    (tmp_path / "My Model").mkdir()
    place = SourceLookup(allow_local=True).judge(str(tmp_path / "My Model"), subdir="a")
    lookup = ImageLookup(registry=registry)
    for source, repository in ((URL, "local/my-model/a"), ("local/My Model", "acme/digits"), ("local/x", "local/x/a")):
        publish(registry, BlobStore(tmp_path / "b"), Recipe(), AMD64, source=source, repository=repository)
        assert lookup.existing(place, COMMIT, Recipe(), (AMD64,)) is None
        assert not lookup.move_commit(place, COMMIT, Recipe(), (AMD64,))
    publish(
        registry, BlobStore(tmp_path / "b"), Recipe(), AMD64, source="local/My Model", repository="local/my-model/a"
    )
    result = lookup.existing(place, COMMIT, Recipe(), (AMD64,))
    assert (result["repository"], result["commit"]) == ("local/My Model", COMMIT)


def test_a_registry_that_is_not_there_is_told():
    lookup = ImageLookup(
        registry=Registry.parse("127.0.0.1:1"), login={"host": "127.0.0.1:1", "username": "u", "password": "sentinel"}
    )
    assert "sentinel" not in repr(lookup)
    with pytest.raises(RegistryUnreachable):
        lookup.ping()
