"""Records become artifacts that refer to an index, in a registry or as documents of a layout."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING

from flops.builder.records import CREATED, KINDS, PLATFORMS, TITLE, Part, Record
from flops.oci.artifacts import Content, artifact_document, parse_artifact
from flops.oci.upload import PushedBlob

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from flops.oci.client import RegistryClient
    from flops.oci.descriptor import Descriptor
    from flops.platforms import Platform


def contents(record: Record) -> tuple[Content, ...]:
    """Its documents as blobs, each with its file name and platforms."""
    return tuple(_content(part) for part in record.parts)


def document(record: Record, subject: Descriptor, *, created: str) -> bytes:
    """The manifest of a record whose blobs lie beside it."""
    first, *others = contents(record)
    blobs = [one.descriptor for one in others]
    return artifact_document(record.artifact_type, first, blobs=blobs, annotations={CREATED: created}, subject=subject)


def attach(
    client: RegistryClient,
    repository: str,
    subject: Descriptor,
    record: Record,
    *,
    created: str,
    carried: Collection[Descriptor] = (),
    mount_from: Collection[str] = (),
) -> int:
    """Push a record; bytes of documents that were uploaded for it. RegistryError.

    `carried`: documents of an earlier index, which the repository holds already.
    """
    first, *others = contents(record)
    uploaded = 0
    for one in (first, *others):
        digest, size = one.descriptor.digest, len(one.data)
        opener = partial(io.BytesIO, one.data)
        how = client.push_blob(repository, digest, size, opener, mount_from=mount_from)
        uploaded += size if how is PushedBlob.UPLOADED else 0
    blobs = {one.digest: one for one in (*(one.descriptor for one in others), *carried)}
    blobs.pop(first.descriptor.digest, None)
    client.put_artifact(
        repository,
        None,
        record.artifact_type,
        first,
        blobs=tuple(blobs.values()),
        annotations={CREATED: created},
        subject=subject,
    )
    return uploaded


def carried(
    client: RegistryClient, repository: str, index: str, platforms: Collection[Platform]
) -> Mapping[str, tuple[Descriptor, ...]]:
    """What an index's records say of these platforms, by the type of their artifact; RegistryError.

    An index that gains a platform is another one: what was known of the others goes on to it.
    """
    found: dict[str, dict[str, Descriptor]] = {}
    for referrer in client.referrers(repository, index):
        if referrer.artifact_type not in KINDS:
            continue
        manifest = client.get_manifest(repository, referrer.digest)
        if manifest is None:
            continue
        for blob in parse_artifact(manifest.document).blobs:
            named = set(blob.annotations.get(PLATFORMS, "").split(","))
            if named & {platform.value for platform in platforms}:
                found.setdefault(referrer.artifact_type, {})[blob.digest] = blob
    return {kind: tuple(blobs.values()) for kind, blobs in found.items()}


def _content(part: Part) -> Content:
    names = ",".join(platform.value for platform in part.platforms)
    annotations = {TITLE: part.title, PLATFORMS: names}
    return Content(data=part.data, media_type=part.media_type, annotations=annotations, embedded=False)
