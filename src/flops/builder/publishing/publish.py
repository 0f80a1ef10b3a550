"""Where finished images go: what every place can do, and the registry; `local_targets` has those on this machine.

The build knows none of them: it offers each layer as soon as it is made, and publishes both actors' images at the end.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from flops.builder.images.actors import Actor
from flops.builder.images.compose import LOCK, UNPACKED
from flops.errors import BadImage, ImageNotFound
from flops.oci.image import Descriptor, ImageIndex, index, index_document, parse_index, parse_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flops.builder.records.attach import Attachments
    from flops.builder.shared_cache import SharedCache
    from flops.oci.client import RegistryClient
    from flops.oci.image import Image, ParsedManifest
    from flops.oci.layer import Layer
    from flops.oci.layout import BlobStore
    from flops.oci.reference import Registry
    from flops.platforms import Platform
    from flops.progress import Reporter


@dataclass(frozen=True, kw_only=True)
class LayerSize:
    digest: str
    bytes: int
    title: str = ""
    """What it holds; empty where only the manifest was read."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One platform's image as results show it; sizes in bytes."""

    digest: str
    layers: int
    bytes: int
    uncompressed_bytes: int
    lock: str = ""
    """Digest of what was resolved for it."""
    layer_sizes: tuple[LayerSize, ...] = ()
    """Bottom to top."""

    def to_json(self) -> dict[str, Any]:
        document = {name: getattr(self, name) for name in ("digest", "layers", "bytes", "uncompressed_bytes")}
        return {**document, "layer_sizes": [asdict(one) for one in self.layer_sizes]}


@dataclass(frozen=True, kw_only=True)
class Existing:
    """What a registry holds under a tag."""

    annotations: Mapping[str, str]
    digest: str
    manifests: Mapping[Platform, Descriptor]
    summaries: Mapping[Platform, Summary]

    @property
    def locks(self) -> dict[Platform, str]:
        return {platform: one.lock for platform, one in self.summaries.items()}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One actor's image, in its place."""

    reference: str
    digest: str
    """Of the index under the tag: with platforms that were there before."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Both actors' images, whole, and the names that they get."""

    repository: str
    """Image path without the actor: `acme/digits`."""
    images: Mapping[Actor, tuple[Image, ...]]
    annotations: Callable[[Actor, Mapping[Platform, str]], Mapping[str, str]]
    """Of an actor's index; given each platform's lock, those of platforms too that stand already."""
    locks: Mapping[Platform, str]
    """Of the platforms that were built."""
    tags: tuple[str, ...]
    """The first one is named in results."""
    store: BlobStore
    """Holds the layers."""
    before_tags: Callable[[], None] = lambda: None
    """Called when all but the tags is in place."""
    on_bytes: Callable[[int, int], None] = lambda _done, _total: None
    """Bytes that are in place, and of how many."""
    attachments: Attachments | None = None
    """Records and signatures, where the place can keep them."""


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

    def check(self) -> None:
        self.client.ping()

    def check_push(self, repository: str) -> None:
        self.client.check_push([self._registry.repository(repository, actor.value) for actor in Actor])

    def reference(self, repository: str, actor: Actor, tag: str) -> str:
        pull = self._pull_name or self._registry
        return str(pull.reference(repository, actor.value, tag=tag))

    def existing(self, repository: str, actor: Actor, tag: str) -> Existing | None:
        name = self._registry.repository(repository, actor.value)
        found = self.client.get_manifest(name, tag)
        if found is None:
            return None
        try:
            whole = parse_index(found.document)
        except BadImage:
            return None  # a single image of somebody else's
        manifests = {entry.platform: entry for entry in whole.manifests if entry.platform is not None}
        return Existing(
            annotations=whole.annotations,
            digest=found.digest,
            manifests=manifests,
            summaries={platform: self._summary(name, entry) for platform, entry in manifests.items()},
        )

    def _summary(self, name: str, entry: Descriptor) -> Summary:
        found = self.client.get_manifest(name, entry.digest)
        if found is None:
            raise ImageNotFound(f"{name}@{entry.digest} is named by its index and not there", hint="build with --force")
        return summary_of(entry.digest, parse_manifest(found.document))

    def offer(self, repository: str, layer: Layer, store: BlobStore) -> None:
        name = self._registry.repository(repository, Actor.LEARNER.value)
        opener = partial(store.open, layer.digest)
        self.client.push_blob(name, layer.digest, layer.size, opener, mount_from=self._mounts)

    def publish(self, delivery: Delivery) -> Mapping[Actor, Published]:
        """Blobs, manifests and index of both actors by digest; then the caller's leave; then the tags."""
        learner = self._registry.repository(delivery.repository, Actor.LEARNER.value)
        found = {actor: self.existing(delivery.repository, actor, delivery.tags[-1]) for actor in delivery.images}
        wholes = {actor: with_others(delivery, actor, before) for actor, before in found.items()}
        sizes = {actor: _size(whole) for actor, whole in wholes.items()}
        before = 0
        with ThreadPoolExecutor(1, thread_name_prefix="records") as beside:
            attached = beside.submit(self._attach, delivery, wholes, found)
            for actor, whole in wholes.items():
                name = self._registry.repository(delivery.repository, actor.value)
                mounts = self._mounts if name == learner else (learner, *self._mounts)
                progress = _onward(delivery.on_bytes, before, sum(sizes.values()))
                report = self.client.push_index(name, whole, delivery.store, (), mount_from=mounts, progress=progress)
                before += sizes[actor]
                self.uploaded += report.uploaded
                self.reused += report.reused
            self.uploaded += attached.result()
        delivery.before_tags()
        for tag in reversed(delivery.tags):
            for actor, whole in wholes.items():
                name = self._registry.repository(delivery.repository, actor.value)
                self.client.push_tags(name, whole, delivery.store, [tag])
        return {
            actor: Published(
                reference=self.reference(delivery.repository, actor, delivery.tags[0]), digest=whole.digest
            )
            for actor, whole in wholes.items()
        }

    def _attach(
        self, delivery: Delivery, wholes: Mapping[Actor, ImageIndex], found: Mapping[Actor, Existing | None]
    ) -> int:
        """Records and signatures, while the images travel; bytes uploaded."""
        from flops.builder.records.attach import Place, attach_all  # noqa: PLC0415 - a check needs none

        if delivery.attachments is None:
            return 0
        places = []
        for actor, whole in wholes.items():
            images = {image.platform: image.digest for image in whole.images}
            before = found[actor]
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


def with_others(delivery: Delivery, actor: Actor, before: Existing | None) -> ImageIndex:
    """The platforms that were built, and the others that the index under the recipe's tag already has."""
    locks = {**(before.locks if before else {}), **delivery.locks}
    annotations = delivery.annotations(actor, locks)
    ours = index(delivery.images[actor], annotations)
    built = {image.platform for image in ours.images}
    others = [entry for platform, entry in (before.manifests if before else {}).items() if platform not in built]
    if not others:
        return ours
    entries = sorted([*(image.descriptor for image in ours.images), *others], key=lambda one: str(one.platform))
    return ImageIndex(document=index_document(entries, annotations), images=ours.images)


def summary_of(digest: str, manifest: ParsedManifest) -> Summary:
    """A manifest that was read, as results show it."""
    unpacked = manifest.annotations.get(UNPACKED, "")[:20]
    return Summary(
        digest=digest,
        layers=len(manifest.layers),
        bytes=sum(layer.size for layer in manifest.layers),
        uncompressed_bytes=int(unpacked) if unpacked.isascii() and unpacked.isdigit() else 0,
        lock=manifest.annotations.get(LOCK, ""),
        layer_sizes=tuple(LayerSize(digest=layer.digest, bytes=layer.size) for layer in manifest.layers),
    )


def _size(whole: ImageIndex) -> int:
    """Bytes of all blobs of an index, each once."""
    configs = {image.config_digest: len(image.config) for image in whole.images}
    return sum(layer.size for layer in whole.layers) + sum(configs.values())


def _onward(on_bytes: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    """Counts one actor's bytes on from those of the actors before it."""
    return lambda done, _total: on_bytes(before + done, total)
