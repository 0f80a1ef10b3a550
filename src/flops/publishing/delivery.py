"""Images to be published, images that are published already, and what a target for them can do.

A build knows only the protocol: it offers each layer as soon as it is made, and publishes both actors' images at the end.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from flops.images.compose import LOCK, UNPACKED
from flops.oci.image import ImageIndex, index, index_document

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flops.actors import Actor
    from flops.oci.image import Descriptor, Image, ParsedManifest
    from flops.oci.layer import Layer
    from flops.oci.layout import BlobStore
    from flops.platforms import Platform
    from flops.progress import Reporter
    from flops.records.attach import Attachments
    from flops.store.shared import SharedCache


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
class ExistingImage:
    """An index under a tag, with its platforms."""

    annotations: Mapping[str, str]
    digest: str
    manifests: Mapping[Platform, Descriptor]
    summaries: Mapping[Platform, Summary]
    lost: tuple[Platform, ...] = ()
    """Platforms that the index names and whose manifests are absent."""

    @property
    def locks(self) -> dict[Platform, str]:
        return {platform: one.lock for platform, one in self.summaries.items()}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One actor's image in its target."""

    reference: str
    digest: str
    """Of the index under the tag, which may have platforms of earlier builds too."""


@dataclass(frozen=True, kw_only=True)
class NamedImage:
    """One actor's image that is about to be tagged."""

    digest: str
    """Of the index."""
    platforms: Mapping[Platform, str]
    """Digests of the requested platforms."""


@dataclass(frozen=True, kw_only=True)
class TagMove:
    """The tags that are about to move, and the images that they will name."""

    tags: tuple[str, ...]
    images: Mapping[Actor, NamedImage]

    def to_json(self) -> dict[str, Any]:
        """As the event TAGGING has it (`flops_wire.events`)."""
        images = {
            actor.value: {
                "digest": one.digest,
                "platforms": {platform.value: digest for platform, digest in one.platforms.items()},
            }
            for actor, one in self.images.items()
        }
        return {"tags": list(self.tags), "images": images}


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Both actors' finished images, and the tags that they get."""

    repository: str
    """Image path without the actor: `acme/digits`."""
    images: Mapping[Actor, tuple[Image, ...]]
    annotations: Callable[[Actor, Mapping[Platform, str]], Mapping[str, str]]
    """Of an actor's index, given the lock of each of its platforms."""
    locks: Mapping[Platform, str]
    """Of the platforms that were built."""
    tags: tuple[str, ...]
    """Results name the first one; the last one is exact."""
    store: BlobStore
    """Holds the layers."""
    before_tags: Callable[[TagMove], None] = lambda _move: None
    """Called once, when all but the tags is in place."""
    on_bytes: Callable[[int, int], None] = lambda _done, _total: None
    """Called with the number of bytes that are in place, and the total."""
    warn: Callable[[str], None] = lambda _message: None
    """Called with what is wrong with the published images."""
    attachments: Attachments | None = None
    """Records and signatures, where the target can keep them."""

    def move(self, wholes: Mapping[Actor, ImageIndex]) -> TagMove:
        built = {actor: {image.platform: image.digest for image in images} for actor, images in self.images.items()}
        images = {actor: NamedImage(digest=whole.digest, platforms=built[actor]) for actor, whole in wholes.items()}
        return TagMove(tags=self.tags, images=images)


class Target(Protocol):
    """Takes finished images. `uploaded` and `reused` count bytes, for the report."""

    @property
    def registry(self) -> str | None:
        """Its name in results; None for a target that is not a registry."""

    @property
    def uploaded(self) -> int: ...

    @property
    def reused(self) -> int: ...

    def check(self) -> None:
        """Fail before any work is done if the target can't be used."""

    def check_push(self, repository: str) -> None:
        """Fail if images of this name can't be put there."""

    def reference(self, repository: str, actor: Actor, tag: str) -> str:
        """The name of an image there."""

    def existing(self, repository: str, actor: Actor, tag: str) -> ExistingImage | None:
        """The image of this name, where such a target keeps images."""

    def offer(self, repository: str, layer: Layer, store: BlobStore) -> None:
        """Take a layer that is made, before its image is whole. Called from several threads."""

    def publish(self, delivery: Delivery) -> Mapping[Actor, Published]:
        """Put both images in place; tags move last."""

    def tag(self, repository: str, actor: Actor, digest: str, tag: str) -> None:
        """Give an index that is there another tag."""

    def shared(self, reporter: Reporter) -> SharedCache | None:
        """What builders share there; None for a target that is not a registry."""

    def next_steps(self, references: Sequence[str]) -> list[str]:
        """How a person goes on from here, in lines."""


def merged_index(delivery: Delivery, actor: Actor, before: ExistingImage | None, *, late: bool = False) -> ImageIndex:
    """An index of the platforms that were built, and of the others that the published index has.

    `late`: a published image of a platform that was built is newer than ours, and is kept.
    """
    there = before.manifests if before else {}
    images = [
        image
        for image in delivery.images[actor]
        if not (late and image.platform in there and there[image.platform].digest != image.digest)
    ]
    built = {image.platform for image in images}
    locks = {**(before.locks if before else {}), **{platform: delivery.locks[platform] for platform in built}}
    annotations = delivery.annotations(actor, locks)
    ours = index(images, annotations)
    others = [entry for platform, entry in there.items() if platform not in built]
    if not others:
        return ours
    entries = sorted([*(image.descriptor for image in ours.images), *others], key=lambda one: str(one.platform))
    return ImageIndex(document=index_document(entries, annotations), images=ours.images)


def summary_of(digest: str, manifest: ParsedManifest) -> Summary:
    """A manifest as results show it."""
    unpacked = manifest.annotations.get(UNPACKED, "")[:20]
    return Summary(
        digest=digest,
        layers=len(manifest.layers),
        bytes=sum(layer.size for layer in manifest.layers),
        uncompressed_bytes=int(unpacked) if unpacked.isascii() and unpacked.isdigit() else 0,
        lock=manifest.annotations.get(LOCK, ""),
        layer_sizes=tuple(LayerSize(digest=layer.digest, bytes=layer.size) for layer in manifest.layers),
    )
