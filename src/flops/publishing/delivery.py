"""Images on their way to a place, and as they stand there. Values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from flops.images.compose import LOCK, UNPACKED
from flops.oci.image import ImageIndex, index, index_document

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flops.actors import Actor
    from flops.oci.image import Descriptor, Image, ParsedManifest
    from flops.oci.layout import BlobStore
    from flops.platforms import Platform
    from flops.records.attach import Attachments


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
    lost: tuple[Platform, ...] = ()
    """Named by the index, and not there."""

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
class Named:
    """One actor's image that is about to get names, by digests."""

    digest: str
    """Of the index."""
    platforms: Mapping[Platform, str]
    """Those that were asked for."""


@dataclass(frozen=True, kw_only=True)
class Move:
    """What is about to happen to names: whoever gives leave can tell afterwards whether it did."""

    tags: tuple[str, ...]
    images: Mapping[Actor, Named]

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
    before_tags: Callable[[Move], None] = lambda _move: None
    """Called when all but the tags is in place."""
    on_bytes: Callable[[int, int], None] = lambda _done, _total: None
    """Bytes that are in place, and of how many."""
    warn: Callable[[str], None] = lambda _message: None
    """Told what is amiss with what stands."""
    attachments: Attachments | None = None
    """Records and signatures, where the place can keep them."""

    def move(self, wholes: Mapping[Actor, ImageIndex]) -> Move:
        built = {actor: {image.platform: image.digest for image in images} for actor, images in self.images.items()}
        images = {actor: Named(digest=whole.digest, platforms=built[actor]) for actor, whole in wholes.items()}
        return Move(tags=self.tags, images=images)


def with_others(delivery: Delivery, actor: Actor, before: Existing | None, *, late: bool = False) -> ImageIndex:
    """The platforms that were built, and the others that the index under the recipe's tag already has.

    `late`: another image of a platform that was built came after ours, and stays.
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
