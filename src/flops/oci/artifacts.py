"""Artifacts: manifests that hold anything but an image (OCI image-spec 1.1, "Guidelines for Artifact Usage"). No I/O."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flops.errors import BadImage
from flops.oci.blobs import sha256
from flops.oci.descriptor import INDEX, MANIFEST, Descriptor, canonical, texts, typed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
#: What stands where an artifact has no config (image-spec, "Guidance for an Empty Descriptor").
EMPTY = b"{}"
#: Bytes of a blob that its manifest carries too, as `data` of the descriptor: one request less for its readers.
_EMBEDDED = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Content:
    """A small blob of an artifact, made here."""

    data: bytes
    media_type: str = "application/json"
    annotations: Mapping[str, str] = field(default_factory=dict)
    embedded: bool = True
    """Whether the manifest carries these bytes too, where they are few: not where many artifacts share them."""

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(
            media_type=self.media_type, digest=sha256(self.data), size=len(self.data), annotations=self.annotations
        )


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An artifact as a registry holds it, its first blob read and checked."""

    descriptor: Descriptor
    """Of the manifest."""
    blobs: tuple[Descriptor, ...]
    """As they stand under `layers`; `content` is the first one."""
    content: bytes
    annotations: Mapping[str, str] = field(default_factory=dict)
    subject: Descriptor | None = None


@dataclass(frozen=True, kw_only=True)
class ParsedArtifact:
    """An artifact's manifest."""

    artifact_type: str
    blobs: tuple[Descriptor, ...]
    content: bytes | None
    """The first blob's bytes where the manifest carries them; checked."""
    annotations: Mapping[str, str]
    subject: Descriptor | None


def artifact_document(
    artifact_type: str,
    content: Content,
    *,
    blobs: Sequence[Descriptor] = (),
    annotations: Mapping[str, str] | None = None,
    subject: Descriptor | None = None,
) -> bytes:
    """The manifest: the content first, then further blobs, which the repository must hold too; the config is empty."""
    first = content.descriptor.to_json()
    if content.embedded and len(content.data) <= _EMBEDDED:
        first["data"] = base64.b64encode(content.data).decode()
    value: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": artifact_type,
        "config": {"mediaType": EMPTY_TYPE, "digest": sha256(EMPTY), "size": len(EMPTY), "data": "e30="},
        "layers": [first, *(blob.to_json() for blob in blobs)],
    }
    if subject is not None:
        value["subject"] = {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size}
    if annotations:
        value["annotations"] = dict(annotations)
    return canonical(value)


def parse_artifact(document: bytes) -> ParsedArtifact:
    """Read an artifact's manifest, or a config's type in place of the artifact's; BadImage."""
    value = _object(document)
    entries = typed(value, "layers", list)
    if not entries:
        raise BadImage("an artifact has no blob")
    config, kind = typed(value, "config", dict), value.get("artifactType")
    blobs = tuple(Descriptor.from_json(entry) for entry in entries)
    return ParsedArtifact(
        artifact_type=kind if isinstance(kind, str) else typed(config, "mediaType", str),
        blobs=blobs,
        content=_embedded(entries[0], blobs[0]),
        annotations=texts(value, "annotations"),
        subject=Descriptor.from_json(value["subject"]) if isinstance(value.get("subject"), dict) else None,
    )


def referrers_document(entries: Sequence[Descriptor]) -> bytes:
    """The index under the tag of `fallback_tag`: each manifest once, sorted, so that it does not depend on the order."""
    distinct = {entry.digest: entry for entry in entries}
    manifests = [distinct[digest].to_json() for digest in sorted(distinct)]
    return canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})


def parse_referrers(document: bytes) -> tuple[Descriptor, ...]:
    """The entries of an index of referrers; BadImage."""
    entries = typed(_object(document), "manifests", list)
    return tuple(Descriptor.from_json(entry) for entry in entries)


def fallback_tag(digest: str) -> str:
    """Where the referrers of a manifest are listed in registries that don't list them (distribution specification)."""
    return digest.replace(":", "-", 1)


def _object(document: bytes) -> dict[str, Any]:
    try:
        value = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise BadImage("an artifact's manifest is no JSON") from error
    if not isinstance(value, dict):
        raise BadImage("an artifact's manifest is no JSON object")
    return value


def _embedded(entry: dict[str, Any], descriptor: Descriptor) -> bytes | None:
    text = entry.get("data")
    if not isinstance(text, str):
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadImage("the data of a descriptor can't be read") from error
    if len(data) != descriptor.size or sha256(data) != descriptor.digest:
        raise BadImage(f"the data of a descriptor are not {descriptor.digest}")
    return data
