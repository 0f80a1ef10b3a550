"""Where finished images go: a registry, an OCI layout, an archive, or this machine's container engine.

The build knows none of them: it offers each layer as soon as it is made, and publishes both actors' images at the end.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flops.builder.actors import Actor
from flops.errors import BadImage, ImageNotFound, OutputError, UnknownPlatform
from flops.oci.image import INDEX, Descriptor, ImageIndex, index, index_document, parse_index, parse_manifest
from flops.oci.layout import Layout, write_archive
from flops.platforms import Platform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flops.oci.client import RegistryClient
    from flops.oci.engine import Engine
    from flops.oci.image import Image, ParsedManifest
    from flops.oci.layer import Layer
    from flops.oci.layout import BlobStore
    from flops.oci.reference import Registry

#: A manifest's annotation: bytes of its layers, unpacked.
UNPACKED = "io.flops.unpacked"
#: Digest of what was resolved: packages and wheels.
LOCK = "io.flops.lock"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One platform's image as results show it; sizes in bytes."""

    digest: str
    layers: int
    bytes: int
    uncompressed_bytes: int
    lock: str = ""
    """Digest of what was resolved for it."""

    def to_json(self) -> dict[str, str | int]:
        return {name: getattr(self, name) for name in ("digest", "layers", "bytes", "uncompressed_bytes")}


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

    def reference(self, repository: str, actor: Actor, tag: str) -> str:
        """The name of an image there."""

    def existing(self, repository: str, actor: Actor, tag: str) -> Existing | None:
        """What lies there under this name, where such a place can tell."""

    def offer(self, repository: str, layer: Layer, store: BlobStore) -> None:
        """A layer is made: it may travel now. Called from several threads."""

    def publish(self, delivery: Delivery) -> Mapping[Actor, Published]:
        """Put both images in place; names move last."""

    def next_steps(self, references: Sequence[str]) -> list[str]:
        """How a person goes on from here, in lines."""


class LayoutTarget:
    """An OCI image layout in a directory, read by skopeo, podman, buildah and others."""

    registry = None

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uploaded = self.reused = 0

    def check(self) -> None:
        _writable_directory(self.root)

    def reference(self, repository: str, actor: Actor, tag: str) -> str:
        return f"{repository}/{actor.value}:{tag}"

    def existing(self, repository: str, actor: Actor, tag: str) -> Existing | None:
        """What has this name, where every blob of it is there."""
        layout = Layout(self.root)
        found = layout.read(self.reference(repository, actor, tag))
        try:
            whole = parse_index(layout.blobs.read(found.digest)) if found else None
            entries = {one.platform: one for one in whole.manifests if one.platform is not None} if whole else {}
            summaries = {platform: self._summary(layout.blobs, entry) for platform, entry in entries.items()}
        except (BadImage, FileNotFoundError):
            return None  # written anew
        if found is None or whole is None:
            return None
        return Existing(annotations=whole.annotations, digest=found.digest, manifests=entries, summaries=summaries)

    def _summary(self, blobs: BlobStore, entry: Descriptor) -> Summary:
        manifest = parse_manifest(blobs.read(entry.digest))
        for blob in (manifest.config, *manifest.layers):
            if blobs.size(blob.digest) != blob.size:
                raise BadImage(f"the blob {blob.digest} is not there, or not whole")
        return summary_of(entry.digest, manifest)

    def offer(self, repository: str, layer: Layer, store: BlobStore) -> None:
        """Nothing travels to a directory before the images are whole."""

    def publish(self, delivery: Delivery) -> Mapping[Actor, Published]:
        layout = Layout(self.root)
        published = {}
        for actor in delivery.images:
            whole = with_others(delivery, actor, self.existing(delivery.repository, actor, delivery.tags[-1]))
            fresh = [layer for layer in whole.layers if not layout.blobs.has(layer.digest)]
            self.uploaded += sum(layer.size for layer in fresh)
            self.reused += sum(layer.size for layer in whole.layers) - sum(layer.size for layer in fresh)
            names = [self.reference(delivery.repository, actor, tag) for tag in delivery.tags]
            for name in reversed(names):
                layout.write(name, whole, delivery.store)
            published[actor] = Published(reference=names[0], digest=whole.digest)
        return published

    def next_steps(self, references: Sequence[str]) -> list[str]:
        lines = ["", f"The images are in the OCI layout {self.root}. Copy them where they are needed:"]
        return lines + [f"  skopeo copy --all oci:{self.root}:{name} docker://REGISTRY/{name}" for name in references]


class ArchiveTarget:
    """One tar file of an OCI image layout."""

    registry = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.uploaded = self.reused = 0

    def check(self) -> None:
        _writable_directory(self.path.absolute().parent)
        if self.path.is_dir():
            raise OutputError(f"{self.path} is a directory", hint="name a file that ends in .tar")

    def reference(self, repository: str, actor: Actor, tag: str) -> str:
        return f"{repository}/{actor.value}:{tag}"

    def existing(self, repository: str, actor: Actor, tag: str) -> Existing | None:
        """A file is written anew."""

    def offer(self, repository: str, layer: Layer, store: BlobStore) -> None:
        """A file is written at the end."""

    def publish(self, delivery: Delivery) -> Mapping[Actor, Published]:
        named: dict[str, ImageIndex] = {}
        published = {}
        for actor, images in delivery.images.items():
            whole = index(images, delivery.annotations(actor, delivery.locks))
            for tag in delivery.tags:
                named[self.reference(delivery.repository, actor, tag)] = whole
            name = self.reference(delivery.repository, actor, delivery.tags[0])
            published[actor] = Published(reference=name, digest=whole.digest)
        write_archive(self.path, named, delivery.store)
        self.uploaded = self.path.stat().st_size
        return published

    def next_steps(self, references: Sequence[str]) -> list[str]:
        lines = ["", f"The images are in the archive {self.path}. Copy them where they are needed:"]
        return lines + [
            f"  skopeo copy --all oci-archive:{self.path}:{name} docker://REGISTRY/{name}" for name in references
        ]


class EngineTarget:
    """podman's or docker's own storage: this machine's platform only."""

    registry = None

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.uploaded = self.reused = 0

    def check(self) -> None:
        """The engine answered when it was found."""

    def reference(self, repository: str, actor: Actor, tag: str) -> str:
        return f"localhost/{repository}/{actor.value}:{tag}"

    def existing(self, repository: str, actor: Actor, tag: str) -> Existing | None:
        """Loading again is what was asked for."""

    def offer(self, repository: str, layer: Layer, store: BlobStore) -> None:
        """An engine takes whole images."""

    def publish(self, delivery: Delivery) -> Mapping[Actor, Published]:
        published = {}
        for actor, images in delivery.images.items():
            own = [image for image in images if image.platform is Platform.host()]
            if not own:
                raise UnknownPlatform(
                    "none of the images is for this machine, so none can be loaded",
                    hint=f"add --platform {Platform.host()}, or use --output or --registry",
                )
            name = f"{delivery.repository}/{actor.value}:{delivery.tags[0]}"
            with tempfile.TemporaryDirectory(prefix="flops-load-") as place:
                archive = Path(place, f"{actor.value}.tar")
                whole = index(own, delivery.annotations(actor, delivery.locks))
                write_archive(archive, {name: whole}, delivery.store)
                self.uploaded += archive.stat().st_size
                self.engine.load(archive)
            reference = self.reference(delivery.repository, actor, delivery.tags[0])
            published[actor] = Published(reference=reference, digest=own[0].digest)
        return published

    def next_steps(self, references: Sequence[str]) -> list[str]:
        lines = ["", f"The images are in {self.engine.program}. Look at one:"]
        return lines + [f"  {self.engine.program} run --rm {name} --help" for name in references]


class RegistryTarget:
    """A registry: layers travel while others are made; blobs, manifests, index, then the tags of both actors."""

    def __init__(self, client: RegistryClient, *, pull_name: Registry | None = None) -> None:
        self.client = client
        self.uploaded = self.reused = 0
        self._pull_name = pull_name
        self._registry = client.registry
        self.registry: str | None = str(pull_name or client.registry)

    def check(self) -> None:
        self.client.ping()

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
        self.client.push_blob(name, layer.digest, layer.size, lambda: store.open(layer.digest))

    def publish(self, delivery: Delivery) -> Mapping[Actor, Published]:
        """Blobs, manifests and index of both actors by digest; then the caller's leave; then the tags."""
        learner = self._registry.repository(delivery.repository, Actor.LEARNER.value)
        recipe_tag = delivery.tags[-1]
        wholes = {
            actor: with_others(delivery, actor, self.existing(delivery.repository, actor, recipe_tag))
            for actor in delivery.images
        }
        counted = _Counter(
            delivery.on_bytes, {layer.digest: layer.size for one in wholes.values() for layer in one.layers}
        )
        for actor, whole in wholes.items():
            name = self._registry.repository(delivery.repository, actor.value)
            mounts = () if name == learner else (learner,)
            report = self.client.push_index(name, whole, delivery.store, (), mount_from=mounts, progress=counted)
            self.uploaded += report.uploaded
            self.reused += report.reused
        delivery.before_tags()
        for tag in reversed(delivery.tags):
            for actor, whole in wholes.items():
                name = self._registry.repository(delivery.repository, actor.value)
                self.client.put_manifest(name, tag, INDEX, whole.document)
        return {
            actor: Published(
                reference=self.reference(delivery.repository, actor, delivery.tags[0]), digest=whole.digest
            )
            for actor, whole in wholes.items()
        }

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
    return Summary(
        digest=digest,
        layers=len(manifest.layers),
        bytes=sum(layer.size for layer in manifest.layers),
        uncompressed_bytes=int(manifest.annotations.get(UNPACKED, "0")),
        lock=manifest.annotations.get(LOCK, ""),
    )


class _Counter:
    """Adds up bytes over both actors' pushes, which share most of their layers."""

    def __init__(self, on_bytes: Callable[[int, int], None], sizes: Mapping[str, int]) -> None:
        self._on_bytes = on_bytes
        self._total = sum(sizes.values())

    def __call__(self, done: int, total: int) -> None:
        self._on_bytes(min(done, self._total), max(total, self._total))


def _writable_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(
            f"can't write into {path}: {error.strerror or error}", hint="name a place that can be written"
        ) from error
