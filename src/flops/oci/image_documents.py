"""Image documents as they are read from registries and layouts: bytes in, values out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flops.errors import BadImage
from flops.oci.blobs import digest_hex
from flops.oci.descriptor import AS_OCI, CONFIG, INDEX, MANIFEST, Descriptor, read_platform, texts, typed, words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flops.platforms import Platform


@dataclass(frozen=True, kw_only=True)
class ParsedIndex:
    """An index as it was read."""

    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str]

    def find(self, platform: Platform) -> Descriptor | None:
        """The first manifest for a platform, as the image-spec says."""
        return next((descriptor for descriptor in self.manifests if descriptor.platform is platform), None)


@dataclass(frozen=True, kw_only=True)
class ParsedManifest:
    """A manifest as it was read."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ParsedConfig:
    """A config as it was read."""

    platform: Platform | None
    """None for one that is none of ours."""
    created: str
    diff_ids: tuple[str, ...]
    environment: Mapping[str, str]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    working_directory: str
    user: str
    labels: Mapping[str, str]
    comments: tuple[str, ...]
    """Of the history's entries that have a layer, in the layers' order; fewer where the history is incomplete."""


def parse_index(document: bytes) -> ParsedIndex:
    """Read an OCI index or Docker's manifest list; BadImage for anything else."""
    value = _document(document, {INDEX, ""}, "index")
    return ParsedIndex(
        manifests=tuple(map(Descriptor.from_json, typed(value, "manifests", list))),
        annotations=texts(value, "annotations"),
    )


def parse_manifest(document: bytes) -> ParsedManifest:
    """Read an OCI manifest or Docker's (schema 2); BadImage for anything else."""
    value = _document(document, {MANIFEST, ""}, "manifest")
    return ParsedManifest(
        config=Descriptor.from_json(typed(value, "config", dict)),
        layers=tuple(map(Descriptor.from_json, typed(value, "layers", list))),
        annotations=texts(value, "annotations"),
    )


def parse_config(document: bytes) -> ParsedConfig:
    """Read an image's config, OCI's or Docker's; BadImage where it has no layers' diff ids."""
    value = _document(document, {CONFIG, ""}, "config")
    diff_ids = words(typed(value, "rootfs", dict), "diff_ids")
    if not diff_ids:
        raise BadImage("an image config names no layers")
    for digest in diff_ids:
        digest_hex(digest)
    container = {} if value.get("config") is None else typed(value, "config", dict)
    entries = [] if value.get("history") is None else typed(value, "history", list)
    history = [entry for entry in entries if isinstance(entry, dict) and not entry.get("empty_layer")]
    return ParsedConfig(
        platform=read_platform(value),
        created=str(value.get("created") or ""),
        diff_ids=diff_ids,
        environment=dict(text.partition("=")[::2] for text in words(container, "Env")),
        entrypoint=words(container, "Entrypoint"),
        command=words(container, "Cmd"),
        working_directory=str(container.get("WorkingDir") or ""),
        user=str(container.get("User") or ""),
        labels=texts(container, "Labels"),
        comments=tuple(str(entry.get("comment") or "") for entry in history),
    )


def _document(document: bytes, media_types: set[str], what: str) -> dict[str, Any]:
    try:
        value = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise BadImage(f"an image {what} is not JSON") from error
    if not isinstance(value, dict):
        raise BadImage(f"an image {what} is not an object")
    media_type = str(value.get("mediaType", ""))
    if AS_OCI.get(media_type, media_type) not in media_types:
        raise BadImage(f"expected an image {what}, not {media_type[:100]!r}")
    return value
