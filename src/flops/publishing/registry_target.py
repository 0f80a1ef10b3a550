"""A registry as the target for finished images; `local_targets` has those on this machine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from flops.actors import Actor
from flops.errors import ImageNotFound, UsageError
from flops.oci.descriptor import INDEX, Descriptor
from flops.publishing.delivery import Published
from flops.publishing.naming import TagReader, next_tag, wanted_index

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flops.oci.client import RegistryClient
    from flops.oci.image import ImageIndex
    from flops.oci.layer import Layer
    from flops.oci.layout import BlobStore
    from flops.oci.manifests import Manifest
    from flops.oci.reference import Registry
    from flops.oci.signature import SigningKey
    from flops.progress import Reporter
    from flops.publishing.delivery import Delivery, ExistingImage, Target
    from flops.publishing.naming import TagState
    from flops.request import Request
    from flops.settings import Settings
    from flops.store.shared import SharedCache


#: Times that the tags are read at most; four times suffice while nobody else moves them.
ROUNDS = 16


class RegistryTarget:
    """A registry: layers are pushed while others are made; then manifests and indexes, then the tags of both actors."""

    def __init__(self, client: RegistryClient, *, pull_name: Registry | None = None) -> None:
        self.client = client
        self.uploaded = self.reused = 0
        self._pull_name = pull_name
        self._registry = client.registry
        self.registry: str | None = str(pull_name or client.registry)
        self._mounts: tuple[str, ...] = ()
        self._tags = TagReader(client)

    def check(self) -> None:
        self.client.ping()

    def check_push(self, repository: str) -> None:
        self.client.check_push([self._registry.repository(repository, actor.value) for actor in Actor])

    def reference(self, repository: str, actor: Actor, tag: str) -> str:
        pull = self._pull_name or self._registry
        return str(pull.reference(repository, actor.value, tag=tag))

    def existing(self, repository: str, actor: Actor, tag: str) -> ExistingImage | None:
        name = self._registry.repository(repository, actor.value)
        return self._tags.existing(name, self.client.get_manifest(name, tag))

    def offer(self, repository: str, layer: Layer, store: BlobStore) -> None:
        name = self._registry.repository(repository, Actor.LEARNER.value)
        opener = partial(store.open, layer.digest)
        self.client.push_blob(name, layer.digest, layer.size, opener, mount_from=self._mounts)

    def publish(self, delivery: Delivery) -> Mapping[Actor, Published]:
        """Push both actors' images by digest, ask the caller's leave (`before_tags`), then move the tags.

        The tags are read again after every step, and platforms that others added meanwhile are taken in, until every
        tag names the wanted index.
        """
        wholes: dict[Actor, ImageIndex] = {}
        moved: set[str] = set()
        for _ in range(ROUNDS):
            states = self._tags.states(delivery)
            now = {actor: wanted_index(delivery, actor, one, late=bool(moved)) for actor, one in states.items()}
            if {actor: one.digest for actor, one in now.items()} != {
                actor: one.digest for actor, one in wholes.items()
            }:
                self._put(delivery, now, states, first=not wholes)
                if not wholes:
                    self._warn(delivery, states)
                    delivery.before_tags(delivery.move(now))
                wholes = now
                continue  # the tags may have moved meanwhile
            tag = next_tag(delivery, wholes, states, moved)
            if tag is None:
                break
            for actor, whole in wholes.items():
                if states[actor].digests.get(tag) != whole.digest:
                    name = self._registry.repository(delivery.repository, actor.value)
                    self.client.push_tags(name, whole, delivery.store, [tag])
            moved |= {delivery.tags[-1], tag}
        return {
            actor: Published(
                reference=self.reference(delivery.repository, actor, delivery.tags[0]), digest=whole.digest
            )
            for actor, whole in wholes.items()
        }

    def _warn(self, delivery: Delivery, states: Mapping[Actor, TagState]) -> None:
        for actor, state in states.items():
            for platform in sorted((set(state.before.lost) if state.before else set()) - delivery.locks.keys()):
                name = self._registry.repository(delivery.repository, actor.value)
                delivery.warn(f"the registry lost the image of {name} for {platform}, which leaves the index")

    def _put(
        self, delivery: Delivery, wholes: Mapping[Actor, ImageIndex], states: Mapping[Actor, TagState], *, first: bool
    ) -> None:
        """Push everything but the tags, and the records at the same time; bytes are counted the first time."""
        learner = self._registry.repository(delivery.repository, Actor.LEARNER.value)
        sizes = {actor: _size(whole) for actor, whole in wholes.items()}
        before = 0
        with ThreadPoolExecutor(1, thread_name_prefix="records") as beside:
            attached = beside.submit(self._attach, delivery, wholes, states)
            for actor, whole in wholes.items():
                name = self._registry.repository(delivery.repository, actor.value)
                mounts = self._mounts if name == learner else (learner, *self._mounts)
                progress = _onward(delivery.on_bytes, before, sum(sizes.values())) if first else None
                report = self.client.push_index(name, whole, delivery.store, (), mount_from=mounts, progress=progress)
                before += sizes[actor]
                self.uploaded += report.uploaded if first else 0
                self.reused += report.reused if first else 0
            self.uploaded += attached.result()

    def tag(self, repository: str, actor: Actor, digest: str, tag: str) -> None:
        name = self._registry.repository(repository, actor.value)
        found = self._manifest(name, digest)
        self.client.put_manifest(name, tag, found.media_type, found.document)

    def _attach(self, delivery: Delivery, wholes: Mapping[Actor, ImageIndex], states: Mapping[Actor, TagState]) -> int:
        """Push records and signatures; bytes uploaded."""
        from flops.records.attach import RecordedIndex, attach_all  # noqa: PLC0415 - a check needs none

        if delivery.attachments is None:
            return 0
        indexes = []
        for actor, whole in wholes.items():
            images = {image.platform: image.digest for image in whole.images}
            before = states[actor].before
            one = RecordedIndex(
                repository=self._registry.repository(delivery.repository, actor.value),
                index=whole.descriptor,
                images=images,
                before=before.digest if before else None,
                others=tuple(platform for platform in (before.manifests if before else ()) if platform not in images),
            )
            indexes.append(one)
        return attach_all(self.client, delivery.attachments, indexes)

    def sign(self, repository: str, images: Mapping[Actor, ExistingImage], key: SigningKey) -> None:
        """Sign images that were published before; RegistryError."""
        from flops.oci.signature import sign_image  # noqa: PLC0415 - seldom wanted

        for actor, found in images.items():
            name = self._registry.repository(repository, actor.value)
            size = len(self._manifest(name, found.digest).document)
            sign_image(self.client, name, Descriptor(media_type=INDEX, digest=found.digest, size=size), key)

    def _manifest(self, name: str, digest: str) -> Manifest:
        found = self.client.get_manifest(name, digest)
        if found is None:
            raise ImageNotFound(f"{name}@{digest} went away", hint="build again")
        return found

    def shared(self, reporter: Reporter) -> SharedCache:
        from flops.store.shared import REPOSITORY, SharedCache  # noqa: PLC0415 - a check needs none

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
    """Progress over all actors: adds the bytes of the actors before this one."""
    return lambda done, _total: on_bytes(before + done, total)


def signing_key(request: Request, settings: Settings, target: Target) -> SigningKey | None:
    """The key to sign with; None where none was asked for. BadKey, UsageError: before any work is done.

    Signatures are kept in registries, so the settings' key is not used where images go elsewhere.
    """
    path = request.sign or settings.sign_key
    if path is None:
        return None
    if not isinstance(target, RegistryTarget):
        if request.sign is None:
            return None
        raise UsageError("signatures are kept in a registry, and the images go elsewhere", hint="add --registry")
    from flops.oci.signature import SigningKey  # noqa: PLC0415 - seldom wanted, and slow to import

    password = settings.sign_password.get_secret_value() if settings.sign_password else None
    return SigningKey.read(path, password)
