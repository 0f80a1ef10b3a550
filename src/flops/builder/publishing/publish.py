"""Where finished images go: what every place can do, and the registry; `local_targets` has those on this machine.

The build knows none of them: it offers each layer as soon as it is made, and publishes both actors' images at the end.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Protocol

from flops.builder.images.actors import Actor
from flops.builder.publishing.delivery import Published
from flops.builder.publishing.standing import Standing, behind, gathered
from flops.errors import ImageNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flops.builder.publishing.delivery import Delivery, Existing
    from flops.builder.publishing.standing import Stand
    from flops.builder.shared_cache import SharedCache
    from flops.oci.client import RegistryClient
    from flops.oci.image import ImageIndex
    from flops.oci.layer import Layer
    from flops.oci.layout import BlobStore
    from flops.oci.reference import Registry
    from flops.progress import Reporter

#: Times that what stands under the tags is read; four where nobody else moves them.
ROUNDS = 16


class Target(Protocol):
    """A place for images. `uploaded` and `reused` count bytes, for the report."""

    @property
    def registry(self) -> str | None:
        """As results name it; None for places that are no registry."""

    @property
    def uploaded(self) -> int: ...

    @property
    def reused(self) -> int: ...

    def check(self) -> None:
        """Fail now if the place can't be used, before any work is done."""

    def check_push(self, repository: str) -> None:
        """Fail now if images of this name can't be put there."""

    def reference(self, repository: str, actor: Actor, tag: str) -> str:
        """The name of an image there."""

    def existing(self, repository: str, actor: Actor, tag: str) -> Existing | None:
        """What lies there under this name, where such a place can tell."""

    def offer(self, repository: str, layer: Layer, store: BlobStore) -> None:
        """A layer is made: it may travel now. Called from several threads."""

    def publish(self, delivery: Delivery) -> Mapping[Actor, Published]:
        """Put both images in place; names move last."""

    def name(self, repository: str, actor: Actor, digest: str, tag: str) -> None:
        """Give an index that lies there another name."""

    def shared(self, reporter: Reporter) -> SharedCache | None:
        """Where builders that push there leave what others can use; None for places that are no registry."""

    def next_steps(self, references: Sequence[str]) -> list[str]:
        """How a person goes on from here, in lines."""


class RegistryTarget:
    """A registry: layers travel while others are made; blobs, manifests, index, then the tags of both actors."""

    def __init__(self, client: RegistryClient, *, pull_name: Registry | None = None) -> None:
        self.client = client
        self.uploaded = self.reused = 0
        self._pull_name = pull_name
        self._registry = client.registry
        self.registry: str | None = str(pull_name or client.registry)
        self._mounts: tuple[str, ...] = ()
        self._standing = Standing(client)

    def check(self) -> None:
        self.client.ping()

    def check_push(self, repository: str) -> None:
        self.client.check_push([self._registry.repository(repository, actor.value) for actor in Actor])

    def reference(self, repository: str, actor: Actor, tag: str) -> str:
        pull = self._pull_name or self._registry
        return str(pull.reference(repository, actor.value, tag=tag))

    def existing(self, repository: str, actor: Actor, tag: str) -> Existing | None:
        name = self._registry.repository(repository, actor.value)
        return self._standing.existing(name, self.client.get_manifest(name, tag))

    def offer(self, repository: str, layer: Layer, store: BlobStore) -> None:
        name = self._registry.repository(repository, Actor.LEARNER.value)
        opener = partial(store.open, layer.digest)
        self.client.push_blob(name, layer.digest, layer.size, opener, mount_from=self._mounts)

    def publish(self, delivery: Delivery) -> Mapping[Actor, Published]:
        """Blobs, manifests and index of both actors by digest; then the caller's leave; then the tags.

        What stands is read again after every step, and what others named meanwhile is taken in, until all of it stands.
        """
        wholes: dict[Actor, ImageIndex] = {}
        moved: set[str] = set()
        for _ in range(ROUNDS):
            stands = self._standing.of(delivery)
            now = {actor: gathered(delivery, actor, one, late=bool(moved)) for actor, one in stands.items()}
            if {actor: one.digest for actor, one in now.items()} != {
                actor: one.digest for actor, one in wholes.items()
            }:
                self._put(delivery, now, stands, first=not wholes)
                if not wholes:
                    self._warn(delivery, stands)
                    delivery.before_tags(delivery.move(now))
                wholes = now
                continue  # that took its time
            tag = behind(delivery, wholes, stands, moved)
            if tag is None:
                break
            for actor, whole in wholes.items():
                if stands[actor].digests.get(tag) != whole.digest:
                    name = self._registry.repository(delivery.repository, actor.value)
                    self.client.push_tags(name, whole, delivery.store, [tag])
            moved |= {delivery.tags[-1], tag}
        return {
            actor: Published(
                reference=self.reference(delivery.repository, actor, delivery.tags[0]), digest=whole.digest
            )
            for actor, whole in wholes.items()
        }

    def _warn(self, delivery: Delivery, stands: Mapping[Actor, Stand]) -> None:
        for actor, stand in stands.items():
            for platform in sorted((set(stand.before.lost) if stand.before else set()) - delivery.locks.keys()):
                name = self._registry.repository(delivery.repository, actor.value)
                delivery.warn(f"the registry lost the image of {name} for {platform}, which leaves the index")

    def _put(
        self, delivery: Delivery, wholes: Mapping[Actor, ImageIndex], stands: Mapping[Actor, Stand], *, first: bool
    ) -> None:
        """Everything but the tags, with records beside it; bytes are counted the first time."""
        learner = self._registry.repository(delivery.repository, Actor.LEARNER.value)
        sizes = {actor: _size(whole) for actor, whole in wholes.items()}
        before = 0
        with ThreadPoolExecutor(1, thread_name_prefix="records") as beside:
            attached = beside.submit(self._attach, delivery, wholes, stands)
            for actor, whole in wholes.items():
                name = self._registry.repository(delivery.repository, actor.value)
                mounts = self._mounts if name == learner else (learner, *self._mounts)
                progress = _onward(delivery.on_bytes, before, sum(sizes.values())) if first else None
                report = self.client.push_index(name, whole, delivery.store, (), mount_from=mounts, progress=progress)
                before += sizes[actor]
                self.uploaded += report.uploaded if first else 0
                self.reused += report.reused if first else 0
            self.uploaded += attached.result()

    def name(self, repository: str, actor: Actor, digest: str, tag: str) -> None:
        name = self._registry.repository(repository, actor.value)
        found = self.client.get_manifest(name, digest)
        if found is None:
            raise ImageNotFound(f"{name}@{digest} went away", hint="build again")
        self.client.put_manifest(name, tag, found.media_type, found.document)

    def _attach(self, delivery: Delivery, wholes: Mapping[Actor, ImageIndex], stands: Mapping[Actor, Stand]) -> int:
        """Records and signatures, while the images travel; bytes uploaded."""
        from flops.builder.records.attach import Place, attach_all  # noqa: PLC0415 - a check needs none

        if delivery.attachments is None:
            return 0
        places = []
        for actor, whole in wholes.items():
            images = {image.platform: image.digest for image in whole.images}
            before = stands[actor].before
            place = Place(
                repository=self._registry.repository(delivery.repository, actor.value),
                index=whole.descriptor,
                images=images,
                before=before.digest if before else None,
                others=tuple(platform for platform in (before.manifests if before else ()) if platform not in images),
            )
            places.append(place)
        return attach_all(self.client, delivery.attachments, places)

    def shared(self, reporter: Reporter) -> SharedCache:
        from flops.builder.shared_cache import REPOSITORY, SharedCache  # noqa: PLC0415 - a check needs none

        name = self._registry.repository(*REPOSITORY)
        self._mounts = (name,)
        return SharedCache(self.client, name, reporter)

    def next_steps(self, references: Sequence[str]) -> list[str]:
        insecure = " --tls-verify=false" if self._registry.plain_http else ""
        return ["", "Pull them where they are needed:", *(f"  podman pull{insecure} {name}" for name in references)]


def _size(whole: ImageIndex) -> int:
    """Bytes of all blobs of an index, each once."""
    configs = {image.config_digest: len(image.config) for image in whole.images}
    return sum(layer.size for layer in whole.layers) + sum(configs.values())


def _onward(on_bytes: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    """Counts one actor's bytes on from those of the actors before it."""
    return lambda done, _total: on_bytes(before + done, total)
