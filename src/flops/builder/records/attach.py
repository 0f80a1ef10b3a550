"""Records become artifacts that refer to an index, in a registry or as documents of a layout."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from flops.builder.records import CREATED, KINDS, PLATFORMS, TITLE, Part, Record
from flops.errors import FlopsError
from flops.oci.artifacts import EMPTY, Content, artifact_document, parse_artifact
from flops.oci.blobs import sha256
from flops.oci.descriptor import MANIFEST, Descriptor
from flops.oci.layout import Referrer
from flops.oci.upload import PushedBlob

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from flops.oci.client import RegistryClient
    from flops.oci.signature import SigningKey
    from flops.platforms import Platform

#: Records that travel at the same time, beside the images.
WORKERS = 4


@dataclass(frozen=True, kw_only=True)
class Attachments:
    """What both actors' indexes get beside them."""

    make: Callable[[Mapping[str, str]], Iterator[Record]]
    """The records, given the digests of what they speak of by name; each is made when it is asked for."""
    created: str
    """The commit's time, RFC 3339."""
    refused: Callable[[str], None]
    """Told why records can't be kept: that never fails a build."""
    key: SigningKey | None = None
    """Signs both indexes; a signature that was asked for and can't be kept fails the build."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One actor's index, and where it lies."""

    repository: str
    index: Descriptor
    images: Mapping[Platform, str]
    """Digests of the platforms that were built."""
    before: str | None = None
    """Digest of the index that this one grew out of."""
    others: tuple[Platform, ...] = ()
    """Platforms that it has from there."""


def contents(record: Record) -> tuple[Content, ...]:
    """Its documents as blobs, each with its file name and platforms."""
    return tuple(_content(part) for part in record.parts)


def referrer(record: Record, subject: Descriptor, *, created: str) -> Referrer:
    """A record for a place that holds files: its manifest, and all that this names."""
    first, *others = contents(record)
    blobs = [one.descriptor for one in others]
    annotations = {CREATED: created}
    document = artifact_document(record.artifact_type, first, blobs=blobs, annotations=annotations, subject=subject)
    descriptor = Descriptor(
        media_type=MANIFEST,
        digest=sha256(document),
        size=len(document),
        annotations=annotations,
        artifact_type=record.artifact_type,
    )
    return Referrer(descriptor=descriptor, documents=(document, EMPTY, first.data, *(one.data for one in others)))


def attach(
    client: RegistryClient,
    repository: str,
    subject: Descriptor,
    record: Record,
    *,
    created: str,
    carried: Collection[Descriptor] = (),
) -> int:
    """Push a record; bytes of documents that were uploaded for it. RegistryError.

    `carried`: documents of an earlier index, which the repository holds already.
    """
    first, *others = contents(record)
    uploaded = 0
    for one in (first, *others):
        digest, size = one.descriptor.digest, len(one.data)
        opener = partial(io.BytesIO, one.data)
        how = client.push_blob(repository, digest, size, opener)
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


def attach_all(client: RegistryClient, attachments: Attachments, places: Sequence[Place]) -> int:
    """Records and signatures of all places; bytes that were uploaded. RegistryError where a signature can't be kept.

    What they refer to need not be there yet (distribution specification, "Pushing Manifests with Subject").
    """
    uploaded = 0
    try:
        uploaded = _attach_records(client, attachments, places)
    except FlopsError as error:
        attachments.refused(error.message)
    except Exception as error:  # noqa: BLE001 - a record that can't be written costs no image
        attachments.refused(f"{type(error).__name__}: {error}"[:200])
    if attachments.key is not None:
        from flops.oci.signed_images import sign_image  # noqa: PLC0415 - seldom wanted

        for place in places:
            sign_image(client, place.repository, place.index, attachments.key)
    return uploaded


def _attach_records(client: RegistryClient, attachments: Attachments, places: Sequence[Place]) -> int:
    subjects = {
        f"{client.registry.host}/{place.repository}{suffix}": digest
        for place in places
        for suffix, digest in {"": place.index.digest, **{f" {name}": it for name, it in place.images.items()}}.items()
    }
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="record") as pool:
        before = list(pool.map(lambda place: _before(client, place), places))
        travelling = [
            pool.submit(
                attach,
                client,
                place.repository,
                place.index,
                record,
                created=attachments.created,
                carried=kept.get(record.artifact_type, ()),
            )
            for record in attachments.make(subjects)
            for place, kept in zip(places, before, strict=True)
        ]
        return sum(one.result() for one in travelling)


def _before(client: RegistryClient, place: Place) -> Mapping[str, tuple[Descriptor, ...]]:
    if place.before is None or not place.others:
        return {}
    return carried(client, place.repository, place.before, place.others)


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
