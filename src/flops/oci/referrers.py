"""Which manifests have another one as their subject (distribution specification 1.1, "Listing Referrers").

Registries without that list have an index under a tag instead, which those who push keep ("Referrers Tag Schema").
"""

from __future__ import annotations

import io
import threading
from collections import defaultdict
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from flops.errors import BadImage, ManifestIncomplete, RegistryError, RegistryRefused
from flops.oci import manifests as listing
from flops.oci.artifacts import (
    EMPTY,
    Artifact,
    artifact_document,
    fallback_tag,
    parse_artifact,
    parse_referrers,
    referrers_document,
)
from flops.oci.authentication import pulling
from flops.oci.blobs import sha256
from flops.oci.descriptor import INDEX, MANIFEST, Descriptor
from flops.oci.upload import FileBody

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from flops.oci.artifacts import Content
    from flops.oci.manifests import Manifests
    from flops.oci.remote_blobs import RemoteBlobs
    from flops.oci.transport import Session


#: Rounds of reading and writing an index that others write too.
_ROUNDS = 5
#: Answers of registries that have no such list.
_WITHOUT = {400, 404, 405}


class Referrers:
    """The requests; see RegistryClient for what they promise."""

    def __init__(self, session: Session, manifests: Manifests) -> None:
        self._session = session
        self._manifests = manifests
        self._locks: defaultdict[tuple[str, str], threading.Lock] = defaultdict(threading.Lock)

    def find(self, repository: str, subject: str, artifact_type: str | None) -> tuple[Descriptor, ...]:
        """By the registry's list, or by the tag's index where it has none."""
        listed = self._listed(repository, subject, artifact_type)
        found = self._tagged(repository, subject) if listed is None else listed
        distinct = {entry.digest: entry for entry in found}
        return tuple(entry for entry in distinct.values() if artifact_type in {None, entry.artifact_type})

    def add(self, repository: str, subject: str, *referrers: Descriptor) -> None:
        """Note manifests that were pushed in the tag's index."""
        digests = {referrer.digest for referrer in referrers}
        self._change(repository, subject, lambda entries: (*entries, *referrers), digests.issubset)

    def remove(self, repository: str, subject: str, digest: str) -> None:
        """Take a manifest that was deleted out of the tag's index, where there is one."""
        if any(entry.digest == digest for entry in self._tagged(repository, subject)):
            self._change(
                repository,
                subject,
                lambda entries: tuple(entry for entry in entries if entry.digest != digest),
                lambda digests: digest not in digests,
            )

    def _listed(self, repository: str, subject: str, artifact_type: str | None) -> list[Descriptor] | None:
        path = f"/v2/{repository}/referrers/{subject}"
        if artifact_type:
            path += f"?artifactType={artifact_type.replace('+', '%2B')}"
        found: list[Descriptor] = []
        for number, answer in enumerate(
            listing.pages(self._session, path, expect={200, *_WITHOUT}, scope=pulling(repository))
        ):
            if not answer.is_success and not number:
                return None
            try:
                found += parse_referrers(answer.content)
            except BadImage as error:
                if not number:  # a page of something else that answers to everything
                    return None
                raise RegistryRefused("the registry's list of referrers can't be read") from error
        return found

    def _tagged(self, repository: str, subject: str) -> tuple[Descriptor, ...]:
        found = self._manifests.get(repository, fallback_tag(subject))
        if found is None:
            return ()
        with suppress(BadImage):  # another tag of that name: nobody's list
            return parse_referrers(found.document)
        return ()

    def _change(
        self,
        repository: str,
        subject: str,
        change: Callable[[tuple[Descriptor, ...]], tuple[Descriptor, ...]],
        done: Callable[[set[str]], bool],
    ) -> None:
        """Read, change and write the index, until what is read holds the change: others may write at the same time."""
        with self._locks[repository, subject]:
            for _ in range(_ROUNDS):
                before = self._tagged(repository, subject)
                if done({entry.digest for entry in before}):
                    return
                entries, tag = change(before), fallback_tag(subject)
                try:
                    self._manifests.put(repository, tag, INDEX, referrers_document(entries))
                except ManifestIncomplete:  # some of them were removed, and the registry takes no list that names them
                    there = tuple(one for one in entries if self._manifests.get(repository, one.digest) is not None)
                    self._manifests.put(repository, tag, INDEX, referrers_document(there))
            if not done({entry.digest for entry in self._tagged(repository, subject)}):
                raise RegistryError(f"the referrers of {subject} in {repository} are written by others all the time")


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
