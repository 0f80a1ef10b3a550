"""A registry's artifacts: their manifest, their content, and what they refer to."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING

from flops.errors import BadImage, ManifestIncomplete
from flops.oci.artifacts import EMPTY, Artifact, artifact_document, parse_artifact
from flops.oci.blobs import sha256
from flops.oci.descriptor import MANIFEST, Descriptor
from flops.oci.upload_body import FileBody

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flops.oci.artifacts import Content
    from flops.oci.manifests import Manifests
    from flops.oci.referrers import Referrers
    from flops.oci.remote_blobs import RemoteBlobs

#: Bytes of an artifact's content, which is read whole.
_CONTENT_LIMIT = 64 * 1024 * 1024


class RemoteArtifacts:
    """The requests; see RegistryClient for what they promise."""

    def __init__(self, blobs: RemoteBlobs, manifests: Manifests, referrers: Referrers) -> None:
        self._blobs = blobs
        self._manifests = manifests
        self._referrers = referrers

    def put(
        self,
        repository: str,
        tag: str | None,
        artifact_type: str,
        content: Content,
        *,
        blobs: Sequence[Descriptor],
        annotations: Mapping[str, str] | None,
        subject: Descriptor | None,
    ) -> Descriptor:
        """Blobs, manifest, and the list of the subject's referrers where the registry keeps none."""
        document = artifact_document(artifact_type, content, blobs=blobs, annotations=annotations, subject=subject)
        digest = sha256(document)
        listed = self._push(repository, tag or digest, document, content)
        made = Descriptor(
            media_type=MANIFEST,
            digest=digest,
            size=len(document),
            annotations=annotations or {},
            artifact_type=artifact_type,
        )
        if subject is not None and not listed:
            self._referrers.add(repository, subject.digest, made)
        return made

    def get(self, repository: str, reference: str, artifact_type: str | None) -> Artifact | None:
        """With its content; None where there is none, or none of this type."""
        found = self._manifests.get(repository, reference)
        if found is None:
            return None
        parsed = parse_artifact(found.document)
        if artifact_type not in {None, parsed.artifact_type}:
            return None
        return Artifact(
            descriptor=Descriptor(
                media_type=found.media_type,
                digest=found.digest,
                size=len(found.document),
                annotations=parsed.annotations,
                artifact_type=parsed.artifact_type,
            ),
            blobs=parsed.blobs,
            content=self._content(repository, parsed.blobs[0]) if parsed.content is None else parsed.content,
            annotations=parsed.annotations,
            subject=parsed.subject,
        )

    def _push(self, repository: str, reference: str, document: bytes, content: Content) -> bool:
        """Whether the registry lists it among the referrers of its subject; once more where it lost a blob since."""
        blobs = {content.descriptor.digest: content.data, sha256(EMPTY): EMPTY}
        for again in (True, False):
            for digest, data in blobs.items():
                body = FileBody(partial(io.BytesIO, data), len(data), on_bytes=lambda _count: None)
                self._blobs.push(repository, digest, body, ())
            try:
                return self._manifests.put(repository, reference, MANIFEST, document).lists_subject
            except ManifestIncomplete:
                if not again:
                    raise
                self._blobs.forget(repository, blobs)
        return False

    def _content(self, repository: str, descriptor: Descriptor) -> bytes:
        if descriptor.size > _CONTENT_LIMIT:
            raise BadImage(f"{descriptor.digest} has {descriptor.size} bytes, and {_CONTENT_LIMIT} are read at most")
        found: list[bytes] = []

        def write(pieces: Iterator[bytes]) -> None:
            found.clear()
            size = 0
            for piece in pieces:
                size += len(piece)
                if size > descriptor.size:
                    raise BadImage(f"{descriptor.digest} is longer than its manifest says")
                found.append(piece)

        self._blobs.fetch(repository, descriptor.digest, write)
        return b"".join(found)
