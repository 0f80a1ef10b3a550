"""A registry client (OCI distribution specification 1.1): blobs, manifests, tags; whole images by `push` and `pull`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flops.oci import manifests, pull, push
from flops.oci.content_client import ContentClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from flops.oci.artifacts import Artifact, Content
    from flops.oci.blobs import BlobStore
    from flops.oci.descriptor import Descriptor
    from flops.oci.image import ImageIndex
    from flops.oci.layer import Layer
    from flops.oci.pull import PulledImage, RemoteImage
    from flops.oci.push import Progress, PushReport
    from flops.oci.reference import Reference
    from flops.platforms import Platform


class RegistryClient(ContentClient):
    """Talks to one registry, from any thread; remembers which blobs it saw where, and mounts rather than uploads.

    Without `credentials` it is nobody. `verify` names a file of trusted certificates; `realms` are further hosts that may
    give tokens; `workers` is the number of requests at once to begin with, `chunk` the bytes of a request's body at most.
    With `hosts`, somebody else named the registry: it, and where it leads to, is judged and pinned (BlockedAddress).
    RegistryError and its kinds for everything else that goes wrong.
    """

    def check_push(self, repositories: Sequence[str]) -> None:
        """See that we may push images to these repositories; RegistryUnreachable, RegistryAuth, RegistryRefused."""
        push.check_push(self._session, repositories)

    def push_blobs(
        self,
        repository: str,
        layers: Iterable[Layer],
        store: BlobStore,
        *,
        mount_from: Iterable[str] = (),
        progress: Progress | None = None,
    ) -> PushReport:
        """Upload layers before their image is whole; a later `push_index` of this client finds them done."""
        return push.push_blobs(self, repository, layers, store, mount_from=tuple(mount_from), progress=progress)

    def tags(self, repository: str) -> tuple[str, ...]:
        """All tags, in the registry's order; none where there is no such repository."""
        return manifests.tags(self._session, repository)

    def catalog(self) -> tuple[str, ...]:
        """All repositories; RegistryAuth, RegistryRefused where the registry does not list them."""
        return manifests.catalog(self._session)

    def delete_manifest(self, repository: str, digest: str, *, subject: str | None = None) -> bool:
        """Take a manifest away, by the specification with all tags that name it; whether it was there.

        `subject` is the digest that a referrer refers to: where the registry keeps no list of referrers, ours is corrected.
        DeletesUnsupported.
        """
        there = self._manifests.delete(repository, digest)
        if subject is not None:
            self._referrers.remove(repository, subject, digest)
        return there

    def delete_tag(self, repository: str, tag: str) -> bool:
        """Take one name away; whether it was there. DeletesUnsupported: many registries delete by digest alone."""
        return self._manifests.delete(repository, tag)

    def put_artifact(
        self,
        repository: str,
        tag: str | None,
        artifact_type: str,
        content: Content,
        *,
        blobs: Sequence[Descriptor] = (),
        annotations: Mapping[str, str] | None = None,
        subject: Descriptor | None = None,
    ) -> Descriptor:
        """Push an artifact under a tag (None: by its digest alone) and return its manifest's descriptor.

        Its content is pushed here; the repository must hold the other `blobs`. A subject's referrers are kept by
        `put_referrer`. ManifestIncomplete where the registry does not hold a blob.
        """
        return self._artifacts.put(
            repository, tag, artifact_type, content, blobs=blobs, annotations=annotations, subject=subject
        )

    def put_referrer(
        self,
        repository: str,
        subject: Descriptor,
        artifact_type: str,
        content: Content,
        *,
        annotations: Mapping[str, str] | None = None,
    ) -> Descriptor:
        """Push an artifact that refers to a manifest of the same repository, so that `referrers` lists it."""
        return self.put_artifact(repository, None, artifact_type, content, annotations=annotations, subject=subject)

    def push_referrer(self, repository: str, descriptor: Descriptor, document: bytes) -> bool:
        """Push an artifact's manifest whose blobs are there; whether the registry itself lists it as a referrer."""
        return self._manifests.put(repository, descriptor.digest, descriptor.media_type, document).lists_subject

    def list_referrers(self, repository: str, subject: str, referrers: Sequence[Descriptor]) -> None:
        """Keep the list of what refers to a digest, for a registry that keeps none."""
        self._referrers.add(repository, subject, *referrers)

    def get_artifact(self, repository: str, reference: str, *, artifact_type: str | None = None) -> Artifact | None:
        """An artifact by tag or digest, with its content; None where there is none, or none of this type.

        BadImage where it can't be read, RegistryDigest where bytes are not what they should be.
        """
        return self._artifacts.get(repository, reference, artifact_type)

    def referrers(self, repository: str, digest: str, artifact_type: str | None = None) -> tuple[Descriptor, ...]:
        """The manifests whose subject is this one, by type where one is given; empty where there are none."""
        return self._referrers.find(repository, digest, artifact_type)

    def push_index(
        self,
        repository: str,
        index: ImageIndex,
        store: BlobStore,
        tags: Sequence[str],
        *,
        mount_from: Iterable[str] = (),
        progress: Progress | None = None,
        before_tags: Callable[[], None] | None = None,
    ) -> PushReport:
        """Push an image over platforms: blobs in parallel, manifests, the index; `before_tags()`; then the tags.

        `progress(done, total)` counts bytes of blobs, from any thread. A failure before the tags leaves them untouched.
        """
        return push.push_index(
            self,
            repository,
            index,
            store,
            tags,
            mount_from=tuple(mount_from),
            progress=progress,
            before_tags=before_tags,
        )

    def push_tags(self, repository: str, index: ImageIndex, store: BlobStore, tags: Sequence[str]) -> None:
        """Name an index that `push_index` pushed; what the registry lost since is pushed again."""
        push.push_tags(self, repository, index, store, tags)

    def images(self, repository: str, reference: str) -> dict[Platform, RemoteImage] | None:
        """The documents of each platform's image under a tag or digest; None where there is none. No layers."""
        return pull.images(self, repository, reference)

    def pull(self, reference: Reference, store: BlobStore, platform: Platform) -> PulledImage:
        """Fetch one platform's image into a store, every digest checked on the way; ImageNotFound."""
        return pull.pull(self, reference, store, platform)
