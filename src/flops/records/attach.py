"""Records as artifacts that refer to an index, in a registry or a layout: attached, listed, and read."""

from __future__ import annotations

import contextlib
import io
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Protocol

from flops.errors import BadImage, FlopsError, RegistryDigest, UnknownPlatform
from flops.oci.artifacts import EMPTY, Content, artifact_document, parse_artifact
from flops.oci.blobs import sha256
from flops.oci.descriptor import MANIFEST, Descriptor
from flops.oci.layout import Referrer
from flops.oci.upload import PushedBlob
from flops.platforms import Platform
from flops.progress import Stage
from flops.records import BUILT, CREATED, KINDS, PLATFORMS, TITLE, Part, Record
from flops.records.history import build_record
from flops.records.locks import locks_record
from flops.records.provenance import Run, provenance_record
from flops.records.sbom import sbom_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from flops.errors import Adjustment, Finding
    from flops.oci.client import RegistryClient
    from flops.oci.manifests import Manifest
    from flops.oci.reference import Registry
    from flops.oci.signature import SigningKey
    from flops.records import Materials
    from flops.records.history import History
    from flops.store.document_store import DocumentStore


#: Bytes of one document that are read at most.
LARGEST_DOCUMENT = 64 * 1024 * 1024
#: Records that are pushed at the same time, beside the images.
WORKERS = 4


class ImageSource(Protocol):
    """What images and records are read from, and deleted in: a registry (RegistryClient) or a layout (LayoutSource)."""

    @property
    def registry(self) -> Registry: ...

    def catalog(self) -> tuple[str, ...]: ...
    def tags(self, repository: str) -> tuple[str, ...]: ...
    def get_manifest(self, repository: str, reference: str) -> Manifest | None: ...
    def referrers(self, repository: str, digest: str, artifact_type: str | None = None) -> tuple[Descriptor, ...]: ...
    def fetch_blob(self, repository: str, digest: str, write: Callable[[Iterator[bytes]], None]) -> None: ...
    def delete_manifest(self, repository: str, digest: str) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Attachments:
    """Records and signatures for both actors' indexes."""

    make: Callable[[Mapping[str, str]], Iterator[Record]]
    """Makes the records one by one; its argument maps the names of indexes and manifests to their digests."""
    created: str
    """The commit's time, RFC 3339."""
    refused: Callable[[str], None]
    """Called with the reason if records can't be kept: that never fails a build."""
    key: SigningKey | None = None
    """Signs both indexes; a signature that was asked for and can't be kept fails the build."""


@dataclass(frozen=True, kw_only=True)
class RecordedIndex:
    """One actor's index, which gets records."""

    repository: str
    index: Descriptor
    images: Mapping[Platform, str]
    """Digests of the platforms that were built."""
    before: str | None = None
    """Digest of the index that this one extends."""
    others: tuple[Platform, ...] = ()
    """Platforms that it takes from there."""


@dataclass(frozen=True, kw_only=True)
class Attached:
    """A record that was pushed."""

    descriptor: Descriptor
    listed: bool
    """Whether the registry itself lists it as a referrer."""
    uploaded: int
    """Bytes of documents that the registry did not hold."""


def referrer(record: Record, subject: Descriptor, *, created: str, earlier: Sequence[Descriptor] = ()) -> Referrer:
    """A record's manifest, and the documents that it names; `earlier` ones are in their place already."""
    first, *others = (
        Content(
            data=part.data,
            media_type=part.media_type,
            annotations={TITLE: part.title, PLATFORMS: ",".join(platform.value for platform in part.platforms)},
            embedded=False,
        )
        for part in record.parts
    )
    named = {one.digest: one for one in (*(one.descriptor for one in others), *earlier)}
    named.pop(first.descriptor.digest, None)
    blobs = tuple(named.values())
    annotations = {CREATED: created} | ({BUILT: record.built} if record.built else {})
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
    earlier: Sequence[Descriptor] = (),
) -> Attached:
    """Push a record; RegistryError. Where the registry lists no referrers, the caller has to (`list_referrers`).

    `earlier`: documents of the index that this one extends, which the repository holds already.
    """
    made = referrer(record, subject, created=created, earlier=earlier)
    uploaded = 0
    for one in made.documents[1:]:
        how = client.push_blob(repository, sha256(one), len(one), partial(io.BytesIO, one))
        uploaded += len(one) if how is PushedBlob.UPLOADED else 0
    listed = client.push_referrer(repository, made.descriptor, made.documents[0])
    return Attached(descriptor=made.descriptor, listed=listed, uploaded=uploaded)


def attach_all(client: RegistryClient, attachments: Attachments, indexes: Sequence[RecordedIndex]) -> int:
    """Push records and signatures of all indexes; bytes uploaded. RegistryError where a signature can't be kept.

    The indexes need not be there yet (distribution specification, "Pushing Manifests with Subject").
    """
    uploaded = 0
    try:
        uploaded = _attach_records(client, attachments, indexes)
    except FlopsError as error:
        attachments.refused(error.message)
    except Exception as error:  # noqa: BLE001 - a record that can't be written costs no image
        attachments.refused(f"{type(error).__name__}: {error}"[:200])
    if attachments.key is not None:
        from flops.oci.signature import sign_image  # noqa: PLC0415 - seldom wanted

        for one in indexes:
            sign_image(client, one.repository, one.index, attachments.key)
    return uploaded


def _attach_records(client: RegistryClient, attachments: Attachments, indexes: Sequence[RecordedIndex]) -> int:
    subjects: dict[str, str] = {}
    for one in indexes:
        name = f"{client.registry.host}/{one.repository}"
        subjects |= {name: one.index.digest, **{f"{name} {platform}": it for platform, it in one.images.items()}}
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="record") as pool:
        earlier = list(pool.map(lambda one: _earlier(client, one), indexes))
        pushing: dict[str, list[Future[Attached]]] = {one.repository: [] for one in indexes}
        for record in attachments.make(subjects):
            for one, documents in zip(indexes, earlier, strict=True):
                push = partial(attach, client, one.repository, one.index, record, created=attachments.created)
                pushing[one.repository].append(pool.submit(push, earlier=documents.get(record.artifact_type, ())))
        uploaded = 0
        for one in indexes:
            attached = [future.result() for future in pushing[one.repository]]
            uploaded += sum(record.uploaded for record in attached)
            unlisted = [record.descriptor for record in attached if not record.listed]
            if unlisted:
                client.list_referrers(one.repository, one.index.digest, unlisted)
        return uploaded


def _earlier(client: RegistryClient, one: RecordedIndex) -> Mapping[str, tuple[Descriptor, ...]]:
    """An index that gains a platform is another one: what is known of its other platforms goes on to it."""
    if one.before is None or not one.others:
        return {}
    return record_documents(client, one.repository, one.before, one.others)


def record_documents(
    source: ImageSource, repository: str, index: str, platforms: Iterable[Platform] | None = None
) -> dict[str, tuple[Descriptor, ...]]:
    """The documents of an index's records (those about `platforms`, or all), by their records' type. RegistryError."""
    wanted = None if platforms is None else frozenset(platforms)
    found: dict[str, dict[str, Descriptor]] = {}
    for referrer in source.referrers(repository, index):
        if referrer.artifact_type not in KINDS:
            continue
        manifest = source.get_manifest(repository, referrer.digest)
        for blob in parse_artifact(manifest.document).blobs if manifest is not None else ():
            if wanted is None or not wanted.isdisjoint(_platforms(blob)):
                found.setdefault(referrer.artifact_type, {})[blob.digest] = blob
    return {kind: tuple(found[kind].values()) for kind in KINDS if kind in found}


def read_document(source: ImageSource, repository: str, blob: Descriptor) -> Part:
    """One document, checked; BadImage, RegistryDigest."""
    if blob.size > LARGEST_DOCUMENT:
        raise BadImage(f"the record {blob.digest} has {blob.size} bytes, and {LARGEST_DOCUMENT} are read at most")
    data = bytearray()

    def write(pieces: Iterator[bytes]) -> None:
        data.clear()
        for piece in pieces:
            data.extend(piece)
            if len(data) > blob.size:
                raise RegistryDigest(f"{blob.digest} is longer than its manifest says")

    source.fetch_blob(repository, blob.digest, write)
    if sha256(bytes(data)) != blob.digest:
        raise RegistryDigest(f"{blob.digest} is not what its manifest says")
    return Part(
        title=blob.annotations.get(TITLE, blob.digest),
        media_type=blob.media_type,
        data=bytes(data),
        platforms=tuple(_platforms(blob)),
    )


def _platforms(blob: Descriptor) -> Iterator[Platform]:
    """The platforms that a document is about, by its annotation."""
    for name in filter(None, blob.annotations.get(PLATFORMS, "").split(",")):
        with contextlib.suppress(UnknownPlatform):
            yield Platform.parse(name)


def build_attachments(
    history: History,
    materials: Materials,
    sboms: DocumentStore,
    *,
    seconds: Callable[[], Mapping[str, float]],
    moved: Mapping[str, int],
    adjustments: Sequence[Adjustment],
    findings: Sequence[Finding],
    key: SigningKey | None,
) -> Attachments:
    """What a build attaches: history, locks, provenance and SBOMs; `moved` counts bytes, `sboms` remembers documents."""

    def make(subjects: Mapping[str, str]) -> Iterator[Record]:
        run = Run(identity=str(uuid.uuid4()), begun=history.begun, ended=datetime.now(UTC))
        yield build_record(
            history,
            run,
            materials.platforms,
            seconds=seconds(),
            moved=moved,
            adjustments=adjustments,
            findings=findings,
        )
        locks = locks_record(materials)
        yield locks
        yield provenance_record(materials, run, subjects, locks=locks)
        yield sbom_record(materials, sboms)

    def refused(reason: str) -> None:
        history.warning(
            Stage.PUSH,
            f"the records of this build (locks, SBOM, provenance) are not kept: {reason}",
            hint="the images are whole without them",
        )

    return Attachments(make=make, created=materials.identity.time, refused=refused, key=key)
