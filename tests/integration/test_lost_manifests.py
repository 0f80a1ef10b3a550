"""After docker-registry's `garbage-collect -m` indexes stand whose platforms' manifests and layers are gone: it misses what an
index names. A build brings them back, with its records; the embedded registry loses none so, and deletes what it is told to.
"""

import pytest
from tests.integration.test_registries import DockerRegistry, run
from tests.unit.test_build import AMD64, ARM64, Told, repository, request, settings, world

from flops.actors import Actor
from flops.oci.client import RegistryClient
from flops.oci.image import parse_index, parse_manifest
from flops.publishing.registry_target import RegistryTarget
from flops.records import KINDS
from flops.registry.app import EmbeddedRegistry
from flops.use_cases.build import build

pytestmark = pytest.mark.integration
__all__ = ["repository", "settings", "world"]  # fixtures


class Lossy:
    """A registry, on one address through all its lives."""

    def __init__(self, kind, place):
        self.kind = kind
        self.running = (EmbeddedRegistry if kind == "embedded" else DockerRegistry)(place)

    def lose(self, names):
        """The manifests of all platforms, and what only they name."""
        if self.kind == "docker-registry":
            self.running.__exit__(None, None, None)
            run("docker-registry", "garbage-collect", "-m", self.running.place / "config.yml")
            self.running.__enter__()
            return
        with RegistryClient(self.running.registry) as client:
            for name in names:
                for tag in client.tags(name):
                    for entry in parse_index(client.get_manifest(name, tag).document).manifests:
                        client.delete_manifest(name, entry.digest)


@pytest.fixture(params=["docker-registry", "embedded"])
def lossy(request, tmp_path):
    one = Lossy(request.param, tmp_path / "registry")
    with one.running:
        yield one


@pytest.fixture
def make(world, settings, lossy, repository):
    def run_build(*platforms, **options):
        told = Told()
        with RegistryClient(lossy.running.registry) as client:
            asked = request(repository, *platforms, **options)
            return build(asked, RegistryTarget(client), settings=settings, reporter=told), told

    return run_build


NAMES = [f"local/digits/{actor.value}" for actor in Actor]


def whole(lossy, result):
    """Each platform's image can be had under both tags; the platforms and the kinds of records."""
    with RegistryClient(lossy.running.registry) as client:
        for name, image in zip(NAMES, result.images.values(), strict=True):
            for tag in client.tags(name):
                if tag.startswith("sha256-"):
                    continue
                found = client.images(name, tag)
                assert client.get_manifest(name, tag).digest == image.digest
                assert all(
                    client.has_blob(name, layer.digest)
                    for one in found.values()
                    for layer in parse_manifest(one.manifest).layers
                )
        index = result.images[Actor.LEARNER].digest
        kinds = {
            one.artifact_type for one in client.referrers(NAMES[0], index) if client.get_manifest(NAMES[0], one.digest)
        }
        return set(found), kinds


@pytest.mark.parametrize("force", [True, False])
def test_a_build_repairs_an_image_whose_platforms_are_gone(make, lossy, force):
    first, _ = make(AMD64, ARM64)
    lossy.lose(NAMES)
    again, told = make(AMD64, ARM64, force=force)
    assert {actor: one.digest for actor, one in again.images.items()} == {
        actor: one.digest for actor, one in first.images.items()
    }
    platforms, kinds = whole(lossy, again)
    assert platforms == {AMD64, ARM64}
    assert kinds == set(KINDS)
    assert told.warnings == []


@pytest.mark.parametrize("force", [True, False])
def test_a_platform_that_is_gone_and_is_not_built_leaves_the_index_with_a_warning(make, lossy, force):
    make(AMD64, ARM64)
    lossy.lose(NAMES)
    again, told = make(AMD64, force=force)
    platforms, _ = whole(lossy, again)
    assert platforms == {AMD64}
    warned = [message for _, message in told.warnings]
    assert len(warned) == 2
    assert all("linux/arm64" in message and name in message for name, message in zip(NAMES, warned, strict=True))
    assert whole(lossy, make(AMD64, ARM64)[0])[0] == {AMD64, ARM64}
