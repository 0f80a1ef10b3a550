"""Records become artifacts that refer to an index, in a registry or as documents of a layout."""

from __future__ import annotations

import io
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from flops.errors import FlopsError
from flops.oci.artifacts import EMPTY, Content, artifact_document, parse_artifact
from flops.oci.blobs import sha256
from flops.oci.descriptor import MANIFEST, Descriptor
from flops.oci.layout import Referrer
from flops.oci.upload import PushedBlob
from flops.progress import Stage
from flops.records import BUILT, CREATED, KINDS, PLATFORMS, TITLE, Part, Record
from flops.records.history import build_record
from flops.records.locks import locks_record
from flops.records.provenance import Run, provenance_record

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from flops.errors import Adjustment, Finding
    from flops.oci.client import RegistryClient
    from flops.oci.layout import LayoutSource
    from flops.oci.signature import SigningKey
    from flops.platforms import Platform
    from flops.records import Materials
    from flops.records.history import History
    from flops.records.sbom import Bills


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
class RecordPlace:
    """One actor's index, and where it lies."""

    repository: str
    index: Descriptor
    images: Mapping[Platform, str]
    """Digests of the platforms that were built."""
    before: str | None = None
    """Digest of the index that this one grew out of."""
    others: tuple[Platform, ...] = ()
    """Platforms that it has from there."""


@dataclass(frozen=True, kw_only=True)
class Attached:
    """A record in its place."""

    descriptor: Descriptor
    listed: bool
    """Whether the registry itself tells whom it refers to."""
    uploaded: int
    """Bytes of documents that were not there."""


def contents(record: Record) -> tuple[Content, ...]:
    """Its documents as blobs, each with its file name and platforms."""
    return tuple(_content(part) for part in record.parts)


def referrer(record: Record, subject: Descriptor, *, created: str, carried: Sequence[Descriptor] = ()) -> Referrer:
    """A record's manifest, and the documents that it names; those that are carried lie there already."""
    first, *others = contents(record)
    named = {one.digest: one for one in (*(one.descriptor for one in others), *carried)}
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
    carried: Sequence[Descriptor] = (),
) -> Attached:
    """Push a record; RegistryError. A registry that does not list referrers is left to `list_referrers`.

    `carried`: documents of an earlier index, which the repository holds already.
    """
    made = referrer(record, subject, created=created, carried=carried)
    uploaded = 0
    for one in made.documents[1:]:
        how = client.push_blob(repository, sha256(one), len(one), partial(io.BytesIO, one))
        uploaded += len(one) if how is PushedBlob.UPLOADED else 0
    listed = client.push_referrer(repository, made.descriptor, made.documents[0])
    return Attached(descriptor=made.descriptor, listed=listed, uploaded=uploaded)


def attach_all(client: RegistryClient, attachments: Attachments, places: Sequence[RecordPlace]) -> int:
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
        from flops.oci.signature import sign_image  # noqa: PLC0415 - seldom wanted

        for place in places:
            sign_image(client, place.repository, place.index, attachments.key)
    return uploaded


def _attach_records(client: RegistryClient, attachments: Attachments, places: Sequence[RecordPlace]) -> int:
    subjects = {
        f"{client.registry.host}/{place.repository}{suffix}": digest
        for place in places
        for suffix, digest in {"": place.index.digest, **{f" {name}": it for name, it in place.images.items()}}.items()
    }
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="record") as pool:
        before = list(pool.map(lambda place: _before(client, place), places))
        travelling: dict[str, list[Future[Attached]]] = {place.repository: [] for place in places}
        for record in attachments.make(subjects):
            for place, kept in zip(places, before, strict=True):
                one = partial(attach, client, place.repository, place.index, record, created=attachments.created)
                carried = kept.get(record.artifact_type, ())
                travelling[place.repository].append(pool.submit(one, carried=carried))
        for place in places:
            attached = [one.result() for one in travelling[place.repository]]
            unlisted = [one.descriptor for one in attached if not one.listed]
            if unlisted:
                client.list_referrers(place.repository, place.index.digest, unlisted)
        return sum(one.result().uploaded for of in travelling.values() for one in of)


def _before(client: RegistryClient, place: RecordPlace) -> Mapping[str, tuple[Descriptor, ...]]:
    if place.before is None or not place.others:
        return {}
    return carried(client, place.repository, place.before, place.others)


def carried(
    client: RegistryClient | LayoutSource, repository: str, index: str, platforms: Collection[Platform]
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


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a build knows when its images are ready to be put in their place."""

    materials: Materials
    bills: Bills
    history: History
    seconds: Callable[[], Mapping[str, float]]
    moved: Mapping[str, int]
    adjustments: tuple[Adjustment, ...]
    findings: tuple[Finding, ...]

    def attachments(self, key: SigningKey | None) -> Attachments:
        return Attachments(
            make=self.records, created=self.materials.identity.time, refused=partial(_refused, self.history), key=key
        )

    def records(self, subjects: Mapping[str, str]) -> Iterator[Record]:
        """Locks, bill of materials, provenance, history; `subjects` are digests by name."""
        run = Run(identity=str(uuid.uuid4()), begun=self.history.begun, ended=datetime.now(UTC))
        yield build_record(
            self.history,
            run,
            self.materials.platforms,
            seconds=self.seconds(),
            moved=self.moved,
            adjustments=self.adjustments,
            findings=self.findings,
        )
        locks = locks_record(self.materials)
        yield locks
        yield provenance_record(self.materials, run, subjects, locks=locks)
        yield self.bills.record(self.materials)


def _refused(history: History, reason: str) -> None:
    history.warning(
        Stage.PUSH,
        f"the records of this build (locks, bill of materials, provenance) are not kept: {reason}",
        hint="the images are whole without them",
    )
