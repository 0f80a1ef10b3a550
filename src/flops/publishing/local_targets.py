"""Targets on this machine: an OCI layout, an archive of one, a container engine's own storage."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from flops.errors import BadImage, OutputError, UnknownPlatform
from flops.oci.image import ImageIndex, index, parse_index, parse_manifest
from flops.oci.layout import Layout, LayoutSource, write_archive
from flops.platforms import Platform
from flops.publishing.delivery import ExistingImage, Published, merged_index, summary_of
from flops.records import TIMELESS
from flops.records.attach import record_documents, referrer

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from flops.actors import Actor
    from flops.oci.engine import Engine
    from flops.oci.image import Descriptor
    from flops.oci.layer import Layer
    from flops.oci.layout import BlobStore, Referrer
    from flops.progress import Reporter
    from flops.publishing.delivery import Delivery, Summary


class LocalTarget:
    """What the targets on this machine have in common."""

    registry = None

    def __init__(self) -> None:
        self.uploaded = self.reused = 0

    def check(self) -> None:
        """An engine answered when it was found; the others look at their directory."""

    def check_push(self, repository: str) -> None:
        """Any name can be used."""

    def reference(self, repository: str, actor: Actor, tag: str) -> str:
        return f"{repository}/{actor.value}:{tag}"

    def existing(self, repository: str, actor: Actor, tag: str) -> ExistingImage | None:
        """Only a layout has images to look at: archives are written anew, and engines load again."""

    def offer(self, repository: str, layer: Layer, store: BlobStore) -> None:
        """Layers are written with whole images only."""

    def tag(self, repository: str, actor: Actor, digest: str, tag: str) -> None:
        """Only a layout has images that could get another tag."""

    def shared(self, reporter: Reporter) -> None:
        """Builders share nothing through this machine."""


class LayoutTarget(LocalTarget):
    """An OCI image layout in a directory, read by skopeo, podman, buildah and others."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def check(self) -> None:
        _writable_directory(self.root)

    def existing(self, repository: str, actor: Actor, tag: str) -> ExistingImage | None:
        """The image of this name, if every blob of it is there."""
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
        return ExistingImage(annotations=whole.annotations, digest=found.digest, manifests=entries, summaries=summaries)

    def _summary(self, blobs: BlobStore, entry: Descriptor) -> Summary:
        manifest = parse_manifest(blobs.read(entry.digest))
        for blob in (manifest.config, *manifest.layers):
            if blobs.size(blob.digest) != blob.size:
                raise BadImage(f"the blob {blob.digest} is not there, or not whole")
        return summary_of(entry.digest, manifest)

    def publish(self, delivery: Delivery) -> Mapping[Actor, Published]:
        layout = Layout(self.root)
        with layout.writing():
            return self._publish(delivery, layout)

    def _publish(self, delivery: Delivery, layout: Layout) -> Mapping[Actor, Published]:
        found = {actor: self.existing(delivery.repository, actor, delivery.tags[-1]) for actor in delivery.images}
        wholes = {actor: merged_index(delivery, actor, before) for actor, before in found.items()}
        for layer in {layer.digest: layer for whole in wholes.values() for layer in whole.layers}.values():
            self._take(layer, layout.blobs, delivery.store)
        delivery.before_tags(delivery.move(wholes))
        published = {}
        for actor, whole in wholes.items():
            names = [self.reference(delivery.repository, actor, tag) for tag in delivery.tags]
            earlier = self._earlier(layout, found[actor], {image.platform for image in whole.images})
            referrers = _referrers(delivery, whole, names[0], earlier=earlier)
            for name in reversed(names):
                layout.write(name, whole, delivery.store, referrers)
            published[actor] = Published(reference=names[0], digest=whole.digest)
        return published

    def _earlier(
        self, layout: Layout, before: ExistingImage | None, built: Collection[Platform]
    ) -> Mapping[str, tuple[Descriptor, ...]]:
        """Record documents about the platforms that the layout has already."""
        others = [platform for platform in before.manifests if platform not in built] if before else []
        return record_documents(LayoutSource(layout), "", before.digest, others) if before and others else {}

    def _take(self, layer: Layer, blobs: BlobStore, source: BlobStore) -> None:
        if blobs.size(layer.digest) == layer.size:
            self.reused += layer.size
            return
        try:
            blobs.path(layer.digest).unlink(missing_ok=True)  # one that is not whole
            blobs.take(layer.digest, source)
        except OSError as error:
            raise _not_writable(self.root, error) from error
        self.uploaded += layer.size

    def tag(self, repository: str, actor: Actor, digest: str, tag: str) -> None:
        layout = Layout(self.root)
        whole = ImageIndex(document=layout.blobs.read(digest), images=())
        layout.write(self.reference(repository, actor, tag), whole, layout.blobs)

    def next_steps(self, references: Sequence[str]) -> list[str]:
        lines = ["", f"The images are in the OCI layout {self.root}. Copy them where they are needed:"]
        return lines + [f"  skopeo copy --all oci:{self.root}:{name} docker://REGISTRY/{name}" for name in references]


class ArchiveTarget(LocalTarget):
    """One tar file of an OCI image layout."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def check(self) -> None:
        _writable_directory(self.path.absolute().parent)
        if self.path.is_dir():
            raise OutputError(f"{self.path} is a directory", hint="name a file that ends in .tar")

    def publish(self, delivery: Delivery) -> Mapping[Actor, Published]:
        named: dict[str, ImageIndex] = {}
        published = {}
        wholes = {
            actor: index(images, delivery.annotations(actor, delivery.locks))
            for actor, images in delivery.images.items()
        }
        for actor, whole in wholes.items():
            for tag in delivery.tags:
                named[self.reference(delivery.repository, actor, tag)] = whole
            name = self.reference(delivery.repository, actor, delivery.tags[0])
            published[actor] = Published(reference=name, digest=whole.digest)
        delivery.before_tags(delivery.move(wholes))
        subjects = {whole.digest: (name, whole) for name, whole in named.items()}.values()
        referrers = [one for name, whole in subjects for one in _referrers(delivery, whole, name, timeless=True)]
        write_archive(self.path, named, delivery.store, referrers)
        self.uploaded = self.path.stat().st_size
        return published

    def next_steps(self, references: Sequence[str]) -> list[str]:
        lines = ["", f"The images are in the archive {self.path}. Copy them where they are needed:"]
        return lines + [
            f"  skopeo copy --all oci-archive:{self.path}:{name} docker://REGISTRY/{name}" for name in references
        ]


class EngineTarget(LocalTarget):
    """podman's or docker's own storage: this machine's platform only."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def reference(self, repository: str, actor: Actor, tag: str) -> str:
        return f"localhost/{repository}/{actor.value}:{tag}"

    def publish(self, delivery: Delivery) -> Mapping[Actor, Published]:
        host = {
            actor: [image for image in images if image.platform is Platform.host()]
            for actor, images in delivery.images.items()
        }
        wholes = {actor: index(own, delivery.annotations(actor, delivery.locks)) for actor, own in host.items()}
        delivery.before_tags(delivery.move(wholes))
        published = {}
        for actor, own in host.items():
            if not own:
                raise UnknownPlatform(
                    "none of the images is for this machine, so none can be loaded",
                    hint=f"add --platform {Platform.host()}, or use --output or --registry",
                )
            name = f"{delivery.repository}/{actor.value}:{delivery.tags[0]}"
            with tempfile.TemporaryDirectory(prefix="flops-load-") as place:
                archive = Path(place, f"{actor.value}.tar")
                write_archive(archive, {name: wholes[actor]}, delivery.store)
                self.uploaded += archive.stat().st_size
                self.engine.load(archive)
            reference = self.reference(delivery.repository, actor, delivery.tags[0])
            published[actor] = Published(reference=reference, digest=own[0].digest)
        return published

    def next_steps(self, references: Sequence[str]) -> list[str]:
        lines = ["", f"The images are in {self.engine.program}. Look at one:"]
        return lines + [f"  {self.engine.program} run --rm {name} --help" for name in references]


def _referrers(
    delivery: Delivery,
    whole: ImageIndex,
    name: str,
    *,
    timeless: bool = False,
    earlier: Mapping[str, tuple[Descriptor, ...]] | None = None,
) -> list[Referrer]:
    """An image's records; with `timeless`, only those that are the same for the same materials."""
    kept = earlier or {}
    attachments = delivery.attachments
    if attachments is None:
        return []
    subjects = {name: whole.digest, **{f"{name} {image.platform}": image.digest for image in whole.images}}
    try:
        wanted = [one for one in attachments.make(subjects) if not timeless or one.artifact_type in TIMELESS]
        return [
            referrer(one, whole.descriptor, created=attachments.created, earlier=kept.get(one.artifact_type, ()))
            for one in wanted
        ]
    except Exception as error:  # noqa: BLE001 - a record that can't be written costs no image
        attachments.refused(f"{type(error).__name__}: {error}"[:200])
        return []


def _writable_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise _not_writable(path, error) from error


def _not_writable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"can't write into {path}: {error.strerror or error}", hint="name a place that can be written")
